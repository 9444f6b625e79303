"""TFMQ-DM's calibration set: the denoiser's inputs at every sampling step (2311.16503, section 4)."""

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
class EveryStep(FromSampling):
    """Sample `samples` images with the full-precision model and keep the inputs at every step, or every few.

    The release calibrates activations on 256 samples at each step, so that each timestep gets parameters of its own,
    and weights on every fifth step of 100 (CIFAR-10), every tenth of 200 (Bedrooms) or every 25th of 400 (Churches):
    that is `interval`, which starts with the first step. Under guidance both halves are kept.
    """

    name: ClassVar[str] = "every-step"
    samples: int = attrs.field(default=256, validator=v.ge(1), metadata={"help": "images sampled to calibrate on"})
    interval: int = attrs.field(
        default=1, validator=v.ge(1), metadata={"help": "how many steps lie from one that is kept to the next"}
    )

    def choose(self, times: Tensor, graph: GraphModule, ctx: PassContext) -> Tensor:
        """Every image at every `interval`-th step."""
        chosen = torch.zeros(len(times), self.samples, dtype=torch.bool)
        chosen[:: self.interval] = True
        return chosen
