"""PTQ4DM's calibration set, NDTC: timesteps from a skewed normal distribution (2211.15736, section 3.3)."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.manager import PassContext
from qpass.sampling import generator, make_scheduler
from qpass_passes.calibration.from_sampling import FromSampling


@attrs.frozen(kw_only=True)
class NormalSteps(FromSampling):
    """Sample `samples` images with the full-precision model and keep each one's input at a timestep of its own.

    Timesteps are drawn from N(mean T, (std T)^2), T the timesteps that the model was trained on, and each is the
    nearest of the sampling's. The paper has mean <= 0.5, towards little noise, and does not name it. Here mean and
    standard deviation are 0.4, as PTQ4DM is carried out in APQ-DM's code, and as there a draw outside the schedule
    is moved to its end; `outside = "redraw"` cuts the distribution off instead. Image i's timestep depends on the
    seed and i alone. Under guidance both halves are kept.
    """

    name: ClassVar[str] = "normal-steps"
    samples: int = attrs.field(
        default=1024, validator=v.ge(1), metadata={"help": "images sampled to calibrate on, each at one timestep"}
    )
    mean: float = attrs.field(
        default=0.4,
        validator=[v.ge(0.0), v.le(1.0)],
        metadata={"help": "mean timestep, as a share of those the model was trained on"},
    )
    std: float = attrs.field(
        default=0.4, validator=v.gt(0.0), metadata={"help": "standard deviation of timesteps, as such a share"}
    )
    outside: Literal["clamp", "redraw"] = attrs.field(
        default="clamp",
        validator=v.in_(("clamp", "redraw")),
        metadata={"help": "what becomes of draws outside the schedule: its nearest end, or another draw"},
    )

    def choose(self, times: Tensor, graph: GraphModule, ctx: PassContext) -> Tensor:
        """One step for each image."""
        known = make_scheduler(ctx.sampling, ctx.model.sampler().scheduler_config).config.num_train_timesteps
        uniform = [
            torch.rand((), dtype=torch.float64, generator=generator(ctx.seed, "calibration-timestep", i))
            for i in range(self.samples)
        ]
        drawn = shares(torch.stack(uniform), self.mean, self.std, self.outside) * (known - 1)
        nearest = (times.double().unsqueeze(1) - drawn).abs().argmin(0)
        chosen = torch.zeros(len(times), self.samples, dtype=torch.bool)
        chosen[nearest, torch.arange(self.samples)] = True
        return chosen


def shares(uniform: Tensor, mean: float, std: float, outside: str) -> Tensor:
    """Normal draws within [0, 1] from uniform ones, by the inverse distribution function.

    >>> shares(torch.tensor([0.5, 0.999]), 0.4, 0.4, "clamp")
    tensor([0.4000, 1.0000])
    """
    if outside == "redraw":  # draws again until it is inside: the distribution between the ends
        ends = torch.special.ndtr((torch.tensor([0.0, 1.0], dtype=uniform.dtype) - mean) / std)
        uniform = ends[0] + uniform * (ends[1] - ends[0])
    drawn: Tensor = mean + std * torch.special.ndtri(uniform)
    return drawn.clamp(0, 1)
