"""AdaLog: a logarithm whose base fits the values (2407.12951, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor

from qpass.quantizer import Batches, QParams, Quantizer, Summary, summarise
from qpass.spec import LOGS, QuantSpec
from qpass_passes.quantizers.log2 import log_params, magnitude, step_of
from qpass_passes.quantizers.mse import Mse, rounding_error


@attrs.frozen(kw_only=True)
class AdaptiveLog(Quantizer):
    """Codes round(-log2(x / s) r / q): the base 2^(q / r) and the scale are searched for the least squared error.

    This holds for specs `log:4`; `log2:4` and `log-sqrt2:4` name their base, so that only the scale is searched. All
    others are fitted by `otherwise`. One base serves all parameter sets of a tensor, each of which has its own scale.

    The paper searches for the least error of the product with V, progressively and jointly: a coarse grid, then a
    fine one around its best. Here values are all there is; their squared error is the product's where V is white.
    Our choices: q from 1 to 2 r, every fourth at first; scales from 1.2 to 0.3 times the largest magnitude.
    """

    name: ClassVar[str] = "adaptive-log"
    r: int = attrs.field(
        default=37, validator=v.ge(1), metadata={"help": "the base is 2^(q / r); r = 37 in the paper"}
    )
    candidates: int = attrs.field(
        default=16,
        validator=v.ge(2),
        metadata={"help": "how many scales are tried with each base, and again around the best"},
    )
    otherwise: Quantizer = attrs.field(
        factory=Mse,
        validator=v.instance_of(Quantizer),  # type: ignore[type-abstract]
        metadata={"help": "what fits specs of other formats"},
    )

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """The base and scales found; a large tensor is searched on its histogram."""
        if spec.format not in LOGS:
            return self.otherwise.fit(batches, spec)
        summary = summarise(batches, spec, exact_below=1 << 16, most=1 << 20)  # it is gone through many times
        gap = 0.9 / (self.candidates - 1)
        wide = torch.linspace(1.2, 0.3, self.candidates) - 1
        both = (wide, torch.linspace(-gap, gap, self.candidates))
        if spec.format != "log":
            step = step_of(spec, 1.0)
            return log_params(search(summary, spec, step, both)[0], spec, step)
        coarse = _least({q: search(summary, spec, q / self.r, (wide,)) for q in range(1, 2 * self.r + 1, 4)})
        near = range(max(1, coarse - 3), min(2 * self.r, coarse + 3) + 1)
        fine = {q: search(summary, spec, q / self.r, both) for q in near}
        best = _least(fine)
        return log_params(fine[best][0], spec, best / self.r)


def _least(found: Mapping[int, tuple[Tensor, Tensor]]) -> int:
    """The base whose sets have the least error together."""
    return min(found, key=lambda q: found[q][1].sum().item())


def search(summary: Summary, spec: QuantSpec, step: float, grids: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The scale of each set that leaves the least error, and that error, all (G, K).

    A grid holds shares of the set's largest magnitude, the first as their distance from 1 and each further one as
    the distance from the best so far.
    """
    full = log_params(magnitude(summary.low, summary.high, spec), spec, step).tensors["scale"]
    share, error = torch.ones_like(full), torch.full_like(full, torch.inf)
    for grid in grids:
        centre = share
        for offset in grid.tolist():
            tried = rounding_error(summary, log_params(full * (centre + offset), spec, step), spec, 2.0)
            share = torch.where(tried < error, centre + offset, share)
            error = torch.minimum(tried, error)
    return full * share, error
