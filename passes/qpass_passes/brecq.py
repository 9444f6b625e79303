"""BRECQ: AdaRound's rounding, learned for whole blocks at a time."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import validators as v

from qpass_passes.reconstruction.learning import ChainPass, RoundingOptions
from qpass_passes.reconstruction.objective import Fisher, Objective


@attrs.frozen(kw_only=True)
class Brecq(RoundingOptions, ChainPass):
    """Round the weights of each block so that the block's output changes least (Li et al., 2102.05426).

    The blocks are those of the traced graph: residual, attention, transformer and resampling blocks, and single
    layers between them. The loss is the block output's squared error, equation 10; without the Fisher weights, which
    Q-Diffusion leaves out too, unless `fisher` asks for them. As there are no labels, they are the diagonal of the
    Gauss-Newton matrix of the model output's squared error, E[(J^T v)^2] over random signs v, as one weight for each
    element of a block's output: the mean over 128 calibration rows, which leaves what is kept on disk as it is. A
    block's inputs are those that the blocks before it, already rounded, give. Inputs of layers are not rounded
    meanwhile: `learn-steps` comes after. Iterations, batch, rate and strength as in the authors' code.
    """

    name: ClassVar[str] = "brecq"
    norm: float = attrs.field(default=2.0, validator=v.gt(0), metadata={"help": "power of the error in the loss"})
    fisher: Fisher = attrs.field(
        default="none",
        validator=v.in_(("none", "mean")),
        metadata={"help": 'weights of the error: "none", or "mean", by how far each element moves the output'},
    )

    def objective(self) -> Objective:
        return self.chosen(unit="block")
