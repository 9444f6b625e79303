"""AdaRound: each layer learns which of its weights to round up."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import validators as v

from qpass_passes.reconstruction.learning import ChainPass
from qpass_passes.reconstruction.objective import Objective


@attrs.frozen(kw_only=True)
class AdaRound(ChainPass):
    """Round each weight up or down so that its layer's output changes least (Nagel et al., 2004.10568).

    min over V of ||W x - W~(V) x^||² + strength · Σ 1 - |2 h(V) - 1|^beta, equations 21 to 25, layer after layer: x
    are the layer's inputs in full precision, x^ those that the layers before it, already rounded, give (the paper's
    asymmetric reconstruction). Inputs are not rounded meanwhile. Iterations, batch, rate and strength are those of
    the authors' code (10,000, 32, 1e-3 and 0.01; Q-Diffusion and those after it take 20,000, the default here).
    """

    name: ClassVar[str] = "adaround"
    rate: float = attrs.field(default=1e-3, validator=v.gt(0), metadata={"help": "learning rate"})
    strength: float = attrs.field(default=0.01, validator=v.ge(0), metadata={"help": "of the regularizer"})
    warmup: float = attrs.field(
        default=0.2, validator=[v.ge(0), v.lt(1)], metadata={"help": "share of iterations without the regularizer"}
    )

    def objective(self) -> Objective:
        return Objective(
            unit="layer", iterations=self.iterations, batch=self.batch, rate=self.rate, strength=self.strength,
            warmup=self.warmup, settle=self.settle, precision=self.precision, compiled=self.compiled,
        )  # fmt: skip
