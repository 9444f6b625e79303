"""QDrop: weights and step sizes of a block learned together, with the rounding of inputs dropped at random."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import validators as v

from qpass_passes.reconstruction.learning import ChainPass, JointOptions
from qpass_passes.reconstruction.objective import Objective


@attrs.frozen(kw_only=True)
class QDrop(JointOptions, ChainPass):
    """Reconstruct blocks while a random half of all input values is left unrounded (Wei et al., 2203.05740).

    Rounding of each value is dropped with probability `drop`, equation 9; a block's own input is mixed value by
    value, a share `mix` of it in full precision, as the authors' code does. Rounding of weights and step sizes of
    inputs learn together, at the rates of that code, of which that of step sizes falls along a cosine.
    """

    name: ClassVar[str] = "qdrop"
    mix: float = attrs.field(
        default=0.5,
        validator=[v.ge(0), v.le(1)],
        metadata={"help": "share of the block's input in full precision"},
    )

    def objective(self) -> Objective:
        return self.chosen(unit="block", steps=True, activations=True)
