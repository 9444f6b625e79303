"""Q-Diffusion's calibration set: the denoiser's inputs at uniformly spaced sampling steps (2302.04304, section 3)."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.manager import PassContext
from qpass_passes.calibration.from_sampling import FromSampling


@attrs.frozen(kw_only=True)
class UniformSteps(FromSampling):
    """Sample `samples` images with the full-precision model and keep the inputs at `steps` of their steps.

    Rows are ordered by step, then by image. The kept steps are spread evenly, the first one included. The noise
    is a stream of its own, so evaluation never sees it. Under guidance both halves are kept.
    """

    name: ClassVar[str] = "uniform-steps"
    samples: int = attrs.field(default=128, validator=v.ge(1), metadata={"help": "images sampled to calibrate on"})
    steps: int = attrs.field(
        default=20, validator=v.ge(1), metadata={"help": "sampling steps kept; all of them where there are fewer"}
    )

    def choose(self, times: Tensor, graph: GraphModule, ctx: PassContext) -> Tensor:
        """Every image, at steps that are spread evenly."""
        total, kept = len(times), min(self.steps, len(times))
        chosen = torch.zeros(total, self.samples, dtype=torch.bool)
        chosen[[i * total // kept for i in range(kept)]] = True
        return chosen
