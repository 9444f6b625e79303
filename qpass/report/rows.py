"""Metrics as rows of a table: the original's value beside the quantized model's, where they may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from qpass.report.data import to_json

SIZE = ("packed_mb", "packed_ratio", "bits_per_weight", "integer_share", "macs", "bops")


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """One metric. `values` holds the subjects that were measured; one that was not finite is None."""

    evaluator: str
    name: str
    unit: str
    better: str
    protocol: Mapping[str, Any]
    values: dict[str, float | None] = attrs.field(factory=dict)


def rows(metrics: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """One row per metric, in order. Metrics share a row only if all but value and subject are equal."""
    found: dict[str, list[Row]] = {}
    for metric in metrics:
        same = {key: metric[key] for key in ("evaluator", "name", "unit", "better", "protocol")}
        alike = found.setdefault(to_json(same), [])
        subject = metric["subject"]
        if not alike or subject in alike[-1].values:
            alike.append(Row(**same))
        alike[-1].values[subject] = metric["value"]
    return tuple(row for alike in found.values() for row in alike)
