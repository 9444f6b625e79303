"""The range mean ± k standard deviations: clips the tails of whatever is roughly normal."""

from __future__ import annotations

import attrs
import torch
from attrs import validators as v

from qpass import QParams, Quantizer
from qpass.quantizer import Batches, params_from_range
from qpass.spec import QuantSpec


@attrs.frozen(kw_only=True)
class Sigma(Quantizer):
    """Every parameter set's mean ± `k` standard deviations, from running sums."""

    name = "sigma"

    k: float = attrs.field(default=4.0, validator=v.gt(0.0), metadata={"help": "standard deviations kept"})

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        sums = None  # of 1, x and x², each (G, K)
        for x, group in batches():
            if sums is None:
                sums = torch.zeros(3, spec.time_groups, x.shape[1], dtype=torch.float64)
            x = x.double()  # the square of 1e30 is none in fp32
            powers = torch.stack([torch.ones_like(x), x, x * x]).sum(3)
            sums.index_add_(1, group, powers)
        if sums is None:
            raise ValueError("no values to fit")
        seen = sums[0] > 0
        count, total, squares = torch.where(seen, sums, sums.sum(1, keepdim=True))
        mean = total / count
        reach = self.k * (squares / count - mean * mean).clamp(min=0).sqrt()
        return params_from_range((mean - reach).float(), (mean + reach).float(), spec)
