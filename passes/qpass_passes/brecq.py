"""BRECQ: AdaRound's rounding, learned for whole blocks at a time."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import validators as v

from qpass_passes.reconstruction.learning import LearningPass
from qpass_passes.reconstruction.objective import Objective


@attrs.frozen(kw_only=True)
class Brecq(LearningPass):
    """Round the weights of each block so that the block's output changes least (Li et al., 2102.05426).

    The blocks are those of the traced graph: residual, attention, transformer and resampling blocks, and single
    layers between them. The loss is the block output's squared error, equation 10 without the Fisher weights, which
    Q-Diffusion leaves out too; a block's inputs are those that the blocks before it, already rounded, give. Inputs of
    layers are not rounded meanwhile: `learn-steps` comes after. Iterations, batch, rate and strength as in the
    authors' code.
    """

    name: ClassVar[str] = "brecq"
    rate: float = attrs.field(default=1e-3, validator=v.gt(0), metadata={"help": "learning rate"})
    strength: float = attrs.field(default=0.01, validator=v.ge(0), metadata={"help": "of the regularizer"})
    warmup: float = attrs.field(
        default=0.2, validator=[v.ge(0), v.lt(1)], metadata={"help": "share of iterations without the regularizer"}
    )
    norm: float = attrs.field(default=2.0, validator=v.gt(0), metadata={"help": "power of the error in the loss"})

    def objective(self) -> Objective:
        return Objective(
            unit="block", iterations=self.iterations, batch=self.batch, rate=self.rate, strength=self.strength,
            warmup=self.warmup, norm=self.norm, settle=self.settle, precision=self.precision, compiled=self.compiled,
        )  # fmt: skip
