"""Powers of two for softmax outputs, as FQ-ViT's Log-Int-Softmax has them (2111.13824, section 3.3)."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor

from qpass.quantizer import Batches, QParams, Quantizer, log_codebook, ranges, refuse_negative
from qpass.spec import LOGS, QuantSpec
from qpass_passes.quantizers.mse import Mse


@attrs.frozen(kw_only=True)
class Log2(Quantizer):
    """Codes round(-log2(x / s)) with s the largest magnitude; the last code is 0.

    This holds for specs of a logarithmic format: `log:4`, whose base is 2 then, and `log2:4` or `log-sqrt2:4`, which
    name their base and keep it. All others are fitted by `otherwise`. FQ-ViT's softmax has s = 1, its upper bound.
    """

    name: ClassVar[str] = "log2"
    otherwise: Quantizer = attrs.field(
        factory=Mse,
        validator=v.instance_of(Quantizer),  # type: ignore[type-abstract]
        metadata={"help": "what fits specs of other formats"},
    )

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """The full range in powers of the base."""
        if spec.format not in LOGS:
            return self.otherwise.fit(batches, spec)
        found = ranges(batches, spec.time_groups)
        refuse_negative(found, spec)
        return log_params(magnitude(found.low, found.high, spec), spec, step_of(spec, 1.0))


def step_of(spec: QuantSpec, own: float) -> float:
    """The exponent between neighbouring levels: log2 of the base that the spec names, else a quantizer's own."""
    return {"log2": 1.0, "log-sqrt2": 0.5}.get(spec.format, own)


def magnitude(low: Tensor, high: Tensor, spec: QuantSpec) -> Tensor:
    """The largest value that levels must reach: of both signs where symmetric, else of positive ones."""
    return torch.maximum(-low, high) if spec.symmetric else high.clamp(min=0.0)


def log_params(scale: Tensor, spec: QuantSpec, step: float) -> QParams:
    """Levels scale * 2^(-step k); a scale of nothing is 1."""
    table, thresholds = log_codebook(spec, step, scale.device)
    scale = torch.where(scale > 1e-30, scale, torch.ones_like(scale)).float()
    return QParams(kind="codebook", tensors={"scale": scale, "thresholds": thresholds, "table": table})
