"""What a block is optimized for: which of its parameters learn, from which inputs, against which loss."""

from __future__ import annotations

from typing import Literal, get_args

import attrs
import torch
from attrs import validators as v
from torch import Tensor

from qpass.device import multiplies_bfloat16

ROWS = 512  # calibration rows that polishing looks at, at least, where there are as many

Unit = Literal["layer", "block"]
Fisher = Literal["none", "mean"]
Precision = Literal["float32", "bfloat16", "auto"]


@attrs.frozen(kw_only=True)
class Objective:
    """AdaRound, BRECQ, QDrop and the learning of step sizes are choices of these."""

    unit: Unit = attrs.field(default="block", validator=v.in_(("layer", "block")))
    weights: bool = True  # the rounding of weights learns
    steps: bool = False  # the step sizes of inputs learn
    activations: bool = False  # inputs are rounded, inside the block and before it
    drop: float = attrs.field(default=0.0, validator=[v.ge(0), v.lt(1)])  # share of values left unrounded (QDrop)
    mix: float = attrs.field(default=0.0, validator=[v.ge(0), v.le(1)])  # share of full-precision inputs

    iterations: int = attrs.field(default=20_000, validator=v.ge(1))
    batch: int = attrs.field(default=32, validator=v.ge(1))
    rate: float = attrs.field(default=1e-3, validator=v.gt(0))  # of the rounding variables
    step_rate: float = attrs.field(default=4e-5, validator=v.gt(0))  # of the step sizes
    step_decay: bool = True  # whether step_rate falls to 0 along a cosine
    strength: float = attrs.field(default=0.01, validator=v.ge(0))  # of the rounding regularizer
    warmup: float = attrs.field(default=0.2, validator=[v.ge(0), v.lt(1)])  # share of iterations without it
    # codes that are there already learn again, each rounding variable from this far within the side it is on; 0: not
    restart: float = attrs.field(default=0.0, validator=[v.ge(0), v.lt(0.5)])
    polish: int = attrs.field(default=0, validator=v.ge(0))  # moves in each output channel, once all is learned
    norm: float = attrs.field(default=2.0, validator=v.gt(0))
    fisher: Fisher = attrs.field(default="none", validator=v.in_(("none", "mean")))  # weights of the error
    fisher_rows: int = attrs.field(default=128, validator=v.ge(1))
    # how far timesteps whose error is large to begin with are weighed down: each by the inverse power of that error
    balance: float = attrs.field(default=0.0, validator=[v.ge(0), v.le(2)])
    held_out: bool = True  # whether losses are measured on rows apart from those it learns from
    settle: bool = True  # stop when no rounding variable has anything left to learn
    precision: Precision = attrs.field(default="float32", validator=v.in_(get_args(Precision)))
    compiled: bool = False

    @property
    def polishing(self) -> int:
        """How many iterations of a block polishing it takes, roughly."""
        return 4 * ROWS // self.batch if self.polish else 0

    def half(self, device: torch.device) -> bool:
        """Whether products may be in bf16 there: with `auto`, where the device has instructions for them."""
        return self.precision == "bfloat16" or (self.precision == "auto" and multiplies_bfloat16(device))


def distance(ours: Tensor, theirs: Tensor, norm: float, weight: Tensor | None = None) -> Tensor:
    """weight |ours - theirs|^norm, summed over channels and averaged over all else, as in BRECQ's code.

    Channels are the second axis of images (B x C x H x W) and of videos, and the last of tokens (B x N x C).
    """
    axis = 1 if ours.dim() > 3 else -1
    apart = ours.float() - theirs.float()
    error = apart.square() if norm == 2 else apart.abs().pow(norm)
    return (error if weight is None else error * weight).sum(axis).mean()
