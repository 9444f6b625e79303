"""What the records say in words: how the model computes, and what was left in floating point.

A pass speaks of these through its notes. `execution` holds one of "integer", "simulated" and "float", or
maps nodes to them, or maps them to how many nodes; the three may also stand as notes themselves. A note
with "float" in its name that maps nodes to reasons, or lists nodes, is what was left in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

_MODES = frozenset({"integer", "simulated", "float"})
_SENTENCES = {
    "simulated": "integer weights on disk, arithmetic in floating point",
    "integer": "integer weights on disk, arithmetic in integers",
    "mixed": "integer weights on disk, arithmetic in integers for some nodes and in floating point for others",
    "float": "no node was quantized",
    "not stated": "no pass says how the model computes",
}


@attrs.frozen(kw_only=True)
class Execution:
    """How the quantized model computes, in a word and in a sentence."""

    mode: str
    sentence: str


@attrs.frozen(kw_only=True)
class LeftAlone:
    """A node in floating point, why, and the pass that says so."""

    node: str
    reason: Any
    said_by: str


def execution(report: Mapping[str, Any]) -> Execution:
    """From the last record that says it, else the integer share, else a pass named `simulate`."""
    mode = "not stated"
    records = report["records"]
    said = next((found for record in reversed(records) if (found := _modes(record["notes"]))), frozenset())
    computing = said - {"float"}
    shares = [m["value"] for m in report["metrics"] if m["name"] == "integer_share" and m["subject"] != "original"]
    if computing:
        mode = "mixed" if len(computing) > 1 else min(computing)
    elif said:
        mode = "float"
    elif shares and shares[0] is not None:
        mode = "mixed" if shares[0] else "simulated"
    elif any(record["pass"] == "simulate" for record in records):
        mode = "simulated"
    return Execution(mode=mode, sentence=_SENTENCES[mode])


def left_alone(records: Sequence[Mapping[str, Any]]) -> tuple[LeftAlone, ...]:
    """Every node that a pass left in floating point."""
    return tuple(
        LeftAlone(node=node, reason=reason, said_by=record["pass"])
        for record in records
        for key, value in sorted(record["notes"].items())
        if lists_floats(key, value)
        for node, reason in (sorted(value.items()) if isinstance(value, Mapping) else ((v, None) for v in value))
    )


def lists_floats(key: str, value: object) -> bool:
    """Whether this note lists nodes left in floating point."""
    return "float" in key and isinstance(value, Mapping | list)


def _modes(notes: Mapping[str, Any]) -> frozenset[str]:
    said = notes.get("execution", notes)
    if isinstance(said, str):
        return _MODES & {said}
    if not isinstance(said, Mapping):
        return frozenset()
    keys = {key for key, value in said.items() if key in _MODES and value}
    return frozenset(keys | {value for value in said.values() if isinstance(value, str) and value in _MODES})
