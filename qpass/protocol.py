"""What a figure depends on, compared: two that were measured differently must not stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qpass.evaluator import EvaluationError, Metric
from qpass.report.data import plain

ABSENT = "nothing"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What two protocols disagree on, each as a phrase.

    >>> differences({"resize": "pytorch", "images": 100}, {"resize": "tensorflow", "images": 100, "seed": 1})
    ["resize 'pytorch' against 'tensorflow'", 'seed nothing against 1']
    """
    ours, theirs = plain(a), plain(b)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [
        f"{key} {_shown(ours, key)} against {_shown(theirs, key)}"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def check_alike(a: Metric, b: Metric, names: tuple[str, str] = ("the first", "the second")) -> None:
    """Raise `EvaluationError` where two metrics are not the same one, measured in the same way."""
    if a.name != b.name:
        raise EvaluationError(f"{a.name} of {names[0]} and {b.name} of {names[1]} are different metrics")
    if found := differences(a.protocol, b.protocol):
        raise EvaluationError(
            f"{a.name} of {names[0]} and {names[1]} were measured differently: {'; '.join(found)}; "
            "measure both in one way to compare them"
        )


def _shown(protocol: Mapping[str, Any], key: str) -> str:
    return repr(protocol[key]) if key in protocol else ABSENT
