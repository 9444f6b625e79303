"""The report as plain data: what `report.json` holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import attrs
import numpy as np
import torch

from qpass.evaluator import Metric
from qpass.manager import Record

SCHEMA = 1


def report(
    recipe: Mapping[str, Any],
    seed: int,
    versions: Mapping[str, str],
    device: str,
    records: Sequence[Record],
    metrics: Sequence[tuple[str, Metric]],
) -> dict[str, Any]:
    """All that equal runs have in common; each of `metrics` comes with its evaluator's name."""
    whole = plain(
        {
            "schema": SCHEMA,
            "recipe": recipe,
            "seed": seed,
            "versions": versions,
            "device": device,
            "records": [_record(record) for record in records],
            "metrics": [{"evaluator": name, **_fields(metric)} for name, metric in metrics],
        }
    )
    assert isinstance(whole, dict)
    return whole


def to_json(report: Mapping[str, Any]) -> str:
    """The report as text: equal reports give equal text.

    >>> print(to_json({"b": (1, float("nan")), "a": True}), end="")
    {
     "a": true,
     "b": [
      1,
      null
     ]
    }
    """
    return json.dumps(plain(report), sort_keys=True, indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value as JSON can hold it: not finite is null, sequences are lists, whatever is unknown is its text."""
    match value:
        case None | bool():
            return value
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")  # a path may hold bytes that are no text
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case np.generic():
            return plain(value.item())
        case np.ndarray():
            return plain(value.tolist())
        case torch.Tensor():
            return plain(value.detach().cpu().tolist())
        case Mapping():
            return {plain(str(key)): plain(item) for key, item in value.items()}
        case Set():
            return sorted((plain(item) for item in value), key=lambda item: (str(type(item)), str(item)))
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return plain(_text(value))


def _text(value: object) -> str:
    """The value's text, or its type's name where the text would be an address, which no two runs share."""
    if (name := getattr(value, "__qualname__", None)) is not None:
        return str(name)
    own = type(value).__str__ is not object.__str__ or type(value).__repr__ is not object.__repr__
    return str(value) if own else type(value).__qualname__


def _record(record: Record) -> dict[str, Any]:
    fields = attrs.asdict(record, recurse=False)
    return {"index": fields["index"], "pass": fields.pop("name"), **fields}


def _fields(metric: Metric) -> dict[str, Any]:
    return attrs.asdict(metric, recurse=False)
