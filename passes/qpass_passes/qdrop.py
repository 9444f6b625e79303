"""QDrop: weights and step sizes of a block learned together, with the rounding of inputs dropped at random."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import validators as v

from qpass_passes.reconstruction.learning import ChainPass
from qpass_passes.reconstruction.objective import Objective


@attrs.frozen(kw_only=True)
class QDrop(ChainPass):
    """Reconstruct blocks while a random half of all input values is left unrounded (Wei et al., 2203.05740).

    Rounding of each value is dropped with probability `drop`, equation 9; a block's own input is mixed value by
    value, a share `mix` of it in full precision, as the authors' code does. Rounding of weights and step sizes of
    inputs learn together, at the rates of that code.
    """

    name: ClassVar[str] = "qdrop"
    rate: float = attrs.field(default=1e-3, validator=v.gt(0), metadata={"help": "learning rate of the rounding"})
    step_rate: float = attrs.field(
        default=4e-5, validator=v.gt(0), metadata={"help": "learning rate of the step sizes"}
    )
    strength: float = attrs.field(default=0.01, validator=v.ge(0), metadata={"help": "of the regularizer"})
    warmup: float = attrs.field(
        default=0.2, validator=[v.ge(0), v.lt(1)], metadata={"help": "share of iterations without the regularizer"}
    )
    norm: float = attrs.field(default=2.0, validator=v.gt(0), metadata={"help": "power of the error in the loss"})
    drop: float = attrs.field(
        default=0.5, validator=[v.ge(0), v.lt(1)], metadata={"help": "share of values inside left unrounded"}
    )
    mix: float = attrs.field(
        default=0.5,
        validator=[v.ge(0), v.le(1)],
        metadata={"help": "share of the block's input in full precision"},
    )

    def objective(self) -> Objective:
        return Objective(
            unit="block", steps=True, activations=True, drop=self.drop, mix=self.mix, iterations=self.iterations,
            batch=self.batch, rate=self.rate, step_rate=self.step_rate, strength=self.strength, warmup=self.warmup,
            norm=self.norm, settle=self.settle, precision=self.precision, compiled=self.compiled,
        )  # fmt: skip
