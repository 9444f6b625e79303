from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qpass.evaluator import Metric
from qpass.manager import Record
from qpass.report import report, to_json
from qpass.spec import QuantSpec


def made(metric: Metric, **notes: object) -> dict[str, object]:
    record = Record(index=1, name="assign", options={"weight": QuantSpec(bits=4)}, changed=True, notes=notes)
    return report({"seed": 3}, 3, {"qpass": "0"}, "cpu", [record], [("drift", metric)])


def test_it_holds_exactly_the_fields_that_are_promised() -> None:
    """The top level, a record and a metric have the documented keys, and a quantizer is its text."""
    found = made(Metric(name="sqnr", value=20.5, unit="dB", subject="pair", protocol={"steps": 20}), nodes=2)
    assert found == {
        "schema": 1,
        "recipe": {"seed": 3},
        "seed": 3,
        "versions": {"qpass": "0"},
        "device": "cpu",
        "records": [
            {
                "index": 1,
                "pass": "assign",
                "options": {"weight": "int4 tensor asym"},
                "changed": True,
                "notes": {"nodes": 2},
            }
        ],
        "metrics": [
            {
                "evaluator": "drift",
                "name": "sqnr",
                "value": 20.5,
                "better": "higher",
                "unit": "dB",
                "subject": "pair",
                "protocol": {"steps": 20},
            }
        ],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_what_is_not_finite_is_null_wherever_it_stands(value: float) -> None:
    """As a metric, deep inside notes, and in anything handed to `to_json`, the text parses without NaN."""
    found = made(Metric(name="sqnr", value=value), deep={"a": [1.0, (value,)]})
    text = to_json({**found, "more": value})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    read = json.loads(text, parse_constant=refuse)
    assert read["metrics"][0]["value"] is None
    assert read["records"][0]["notes"] == {"deep": {"a": [1.0, [None]]}}
    assert read["more"] is None


def test_values_json_does_not_know_become_lists_or_text() -> None:
    """Tuples, sets and arrays are lists, paths are text, and no memory address is ever written."""

    class Strange:
        pass

    odd = {
        "path": Path("a/b"),
        "tuple": (1, 2),
        "set": {"b", "a"},
        "array": np.arange(2),
        "type": Strange,
        4: None,
    }
    read = json.loads(to_json({**odd, "object": Strange(), "bytes": "a\udcff"}))
    assert read["path"] == "a/b"
    assert read["tuple"] == [1, 2]
    assert read["set"] == ["a", "b"]
    assert read["array"] == [0, 1]
    assert read["4"] is None
    assert read["object"] == read["type"]
    assert "0x" not in read["object"]
    assert read["bytes"] == "a?"


def test_order_of_keys_does_not_change_the_text() -> None:
    """Equal reports, built in another order, give equal bytes that end in one newline."""
    assert to_json({"a": 1, "b": {"c": 2, "d": 3}}) == to_json({"b": {"d": 3, "c": 2}, "a": 1})
    assert to_json({"a": 1}) == '{\n "a": 1\n}\n'
