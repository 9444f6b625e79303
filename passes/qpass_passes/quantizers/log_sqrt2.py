"""Powers of the root of two for softmax outputs, scaled as RepQ-ViT does (2212.08254, section 3.3)."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from attrs import validators as v

from qpass.quantizer import Batches, QParams, Quantizer, summarise
from qpass.spec import LOGS, QuantSpec
from qpass_passes.quantizers.log2 import log_params, magnitude, step_of
from qpass_passes.quantizers.mse import Mse, rounding_error
from qpass_passes.quantizers.percentile import quantile


@attrs.frozen(kw_only=True)
class LogSqrt2(Quantizer):
    """Codes round(-2 log2(x / s)), with s the quantile of x that leaves the least squared error.

    This holds for specs of a logarithmic format: `log:4`, whose base is the root of 2 then, and `log2:4` or
    `log-sqrt2:4`, which name their base and keep it. All others are fitted by `otherwise`. The last code is 0, so
    that 2^b codes are b bits; the release has 2^b powers and 0 beside them.
    """

    name: ClassVar[str] = "log-sqrt2"
    quantiles: tuple[float, ...] = attrs.field(
        default=(0.999, 0.9999, 0.99999),
        validator=[
            v.deep_iterable(v.and_(v.instance_of(float), v.gt(0.0), v.le(1.0)), v.instance_of(tuple)),
            v.min_len(1),
        ],
        metadata={"help": "which quantiles of the values are tried as the scale"},
    )
    otherwise: Quantizer = attrs.field(
        factory=Mse,
        validator=v.instance_of(Quantizer),  # type: ignore[type-abstract]
        metadata={"help": "what fits specs of other formats"},
    )

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """The best of the quantiles, for each parameter set by itself."""
        if spec.format not in LOGS:
            return self.otherwise.fit(batches, spec)
        summary, step = summarise(batches, spec), step_of(spec, 0.5)
        sizes = summary.values.abs() if spec.symmetric else summary.values.clamp(min=0.0)
        scale = log_params(magnitude(summary.low, summary.high, spec), spec, step).tensors["scale"]
        best = torch.full_like(scale, torch.inf)
        for q in self.quantiles:
            params = log_params(quantile(sizes, summary.counts, q), spec, step)
            error = rounding_error(summary, params, spec, 2.0)
            scale = torch.where(error < best, params.tensors["scale"], scale)
            best = torch.minimum(best, error)
        return log_params(scale, spec, step)
