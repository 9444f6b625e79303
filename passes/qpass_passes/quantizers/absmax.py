"""The range as it is: the smallest grid that clips nothing."""

from __future__ import annotations

from typing import ClassVar

import attrs

from qpass.quantizer import Batches, QParams, Quantizer, params_from_range, ranges, refuse_negative
from qpass.spec import QuantSpec


@attrs.frozen(kw_only=True)
class AbsMax(Quantizer):
    """Scale = (max - min) / levels, or max|x| / highest code where symmetric; nothing is clipped."""

    name: ClassVar[str] = "absmax"

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """Parameters that hold every value seen."""
        found = ranges(batches, spec.time_groups)
        refuse_negative(found, spec)
        return params_from_range(found.low, found.high, spec)
