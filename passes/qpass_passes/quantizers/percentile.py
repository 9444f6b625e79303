"""The range without its tails: clips the same share of values on each side."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import validators as v
from torch import Tensor

from qpass.quantizer import Batches, QParams, Quantizer, params_from_range, summarise
from qpass.spec import QuantSpec


@attrs.frozen(kw_only=True)
class Percentile(Quantizer):
    """The range between the (1-q)- and q-quantiles, found in a 4,096-bin histogram of the values."""

    name: ClassVar[str] = "percentile"
    q: float = attrs.field(
        default=0.9999,
        validator=[v.gt(0.5), v.le(1.0)],
        metadata={"help": "share of values below the upper end of the range"},
    )

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """Parameters for the values between the two quantiles."""
        summary = summarise(batches, spec)
        low = quantile(summary.values, summary.counts, 1 - self.q)
        high = quantile(summary.values, summary.counts, self.q)
        return params_from_range(low, high, spec)


def quantile(values: Tensor, counts: Tensor, q: float) -> Tensor:
    """The least value with at least a share q of all counts at or below it; (G, K, V) to (G, K).

    >>> quantile(torch.tensor([[[3.0, 1.0, 2.0, 4.0]]]), torch.ones(1, 1, 4), 0.5)
    tensor([[2.]])
    """
    ordered, order = values.sort(dim=2)
    total = counts.gather(2, order).double().cumsum(2)
    enough = total >= (q * total[:, :, -1:]) - 1e-9
    first = enough.int().argmax(2, keepdim=True)
    return ordered.gather(2, first).squeeze(2)
