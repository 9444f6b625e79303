from __future__ import annotations

from typing import Any

import pytest

from qpass.evaluator import Metric
from qpass.manager import Record
from qpass.report import report
from qpass.report.facts import execution, left_alone


def told(*notes: dict[str, Any], share: float | None = None, name: str = "p") -> dict[str, Any]:
    records = [Record(index=i, name=name, options={}, changed=True, notes=n) for i, n in enumerate(notes, 1)]
    metrics = [] if share is None else [("size", Metric(name="integer_share", value=share))]
    return report({}, 0, {}, "cpu", records, metrics)


@pytest.mark.parametrize(
    ("notes", "mode"),
    [
        ({"execution": "simulated"}, "simulated"),
        ({"execution": {"a": "integer", "b": "float"}}, "integer"),
        ({"execution": {"integer": 5, "simulated": 2}}, "mixed"),
        ({"execution": {"integer": 0, "simulated": 2}}, "simulated"),
        ({"integer": ["a"], "simulated": {}}, "integer"),
        ({"execution": "float"}, "float"),
        ({"blocks": 3}, "not stated"),
    ],
)
def test_notes_say_how_the_model_computes(notes: dict[str, Any], mode: str) -> None:
    """As one word, per node, as counts, or as notes of their own."""
    assert execution(told(notes)).mode == mode


def test_the_last_pass_that_says_it_is_believed() -> None:
    """A later pass that realises integers overrules an earlier simulation; one that says nothing does not."""
    assert execution(told({"execution": "simulated"}, {"execution": "integer"}, {"n": 1})).mode == "integer"


def test_where_notes_are_silent_the_integer_share_speaks() -> None:
    """None of it is simulation; some of it is mixed; a pass named simulate says it by its name."""
    assert execution(told({}, share=0.0)).mode == "simulated"
    assert execution(told({}, share=0.4)).mode == "mixed"
    assert execution(told({}, name="simulate")).mode == "simulated"


def test_nodes_left_alone_are_read_from_a_mapping_or_a_list() -> None:
    """A count of such nodes lists none."""
    found = left_alone(told({"float": {"b": "why", "a": "so"}}, {"left_in_float": ["c"], "floats": 3})["records"])
    assert [(one.node, one.reason) for one in found] == [("a", "so"), ("b", "why"), ("c", None)]
