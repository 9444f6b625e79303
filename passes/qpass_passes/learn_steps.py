"""Learn the step sizes of inputs, block by block, by the error of the block's output."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import validators as v

from qpass_passes.reconstruction.learning import ChainPass
from qpass_passes.reconstruction.objective import Objective


@attrs.frozen(kw_only=True)
class LearnSteps(ChainPass):
    """Move the step size of every input quantizer along LSQ's gradient (1902.08153, equation 3), as BRECQ does.

    The loss is the squared error of the block's output, with weights rounded as they are: it comes after `brecq` or
    `adaround`. Defaults are those of Q-Diffusion's code: 5,000 iterations at 4e-4, which falls along a cosine, and an
    error to the power of 2.4. Zero points stay.
    """

    name: ClassVar[str] = "learn-steps"
    iterations: int = attrs.field(default=5_000, validator=v.ge(1), metadata={"help": "at most, for each block"})
    rate: float = attrs.field(default=4e-4, validator=v.gt(0), metadata={"help": "learning rate"})
    norm: float = attrs.field(default=2.4, validator=v.gt(0), metadata={"help": "power of the error in the loss"})

    def objective(self) -> Objective:
        return self.chosen(unit="block", weights=False, steps=True, activations=True, step_rate=self.rate)
