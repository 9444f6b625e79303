"""The range that loses least: a search over shrunken ranges for the smallest rounding error."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor

from qpass.kernels import reference
from qpass.quantizer import Batches, QParams, Quantizer, Summary, bits_by_set, params_from_range, summarise
from qpass.spec import QuantSpec


@attrs.frozen(kw_only=True)
class Mse(Quantizer):
    """Shrink the full range by 1 - 0.01 i, i = 0..79, and keep what minimises sum |x - Q(x)|^p.

    This is the search of BRECQ's and Q-Diffusion's code, where p = 2.4. Small tensors are searched on their
    values, large ones on a histogram of 4,096 bins.
    """

    name: ClassVar[str] = "mse"
    steps: int = attrs.field(default=80, validator=v.ge(1), metadata={"help": "how many ranges are tried"})
    shrink: float = attrs.field(
        default=0.01, validator=v.gt(0.0), metadata={"help": "how much smaller each range is than the last"}
    )
    norm: float = attrs.field(default=2.4, validator=v.gt(0.0), metadata={"help": "the exponent p of the error"})

    def __attrs_post_init__(self) -> None:
        if (self.steps - 1) * self.shrink >= 1:
            raise ValueError(f"{self.steps} steps of {self.shrink} shrink the range to nothing; lower one of them")

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """Parameters of the range with the least error, for each parameter set by itself."""
        # the bins of a histogram are even, as most formats are; every value is gone through once for each range
        crowd = 16 if spec.kind == "affine" else 1 << 10
        return search(summarise(batches, spec, crowd=crowd), spec, self.steps, self.shrink, self.norm)


def search(summary: Summary, spec: QuantSpec, steps: int, shrink: float, norm: float) -> QParams:
    """Try every shrunken range on (value, count) pairs and keep the best of each (G, K)."""
    best = torch.full_like(summary.low, torch.inf)
    low, high = summary.low.clone(), summary.high.clone()
    for step in range(steps):
        factor = 1 - shrink * step
        params = params_from_range(summary.low * factor, summary.high * factor, spec)
        error = rounding_error(summary, params, spec, norm)
        better = error < best
        best = torch.where(better, error, best)
        low = torch.where(better, summary.low * factor, low)
        high = torch.where(better, summary.high * factor, high)
    return params_from_range(low, high, spec)


def rounding_error(summary: Summary, params: QParams, spec: QuantSpec, norm: float) -> Tensor:
    """sum count * |x - Q(x)|^norm over the values of each (G, K)."""
    x, scale = summary.values, params.tensors["scale"].unsqueeze(2)
    if params.kind == "codebook":
        codes = reference.encode_codebook(x, scale, params.tensors["thresholds"])
        rounded = params.tensors["table"][codes] * scale
    else:
        zero = params.tensors["zero"].unsqueeze(2)
        bits = bits_by_set(spec, params.tensors["scale"])
        low, high = reference.levels(bits if isinstance(bits, int) else bits.unsqueeze(1), spec.symmetric)
        rounded = reference.encode_affine(x, scale, zero, low, high).sub_(zero).mul_(scale)
    return (rounded.sub_(x).abs_().pow_(norm) * summary.counts).sum(2)
