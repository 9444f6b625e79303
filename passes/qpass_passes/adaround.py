"""AdaRound: each layer learns which of its weights to round up."""

from __future__ import annotations

from typing import ClassVar

import attrs

from qpass_passes.reconstruction.learning import ChainPass, RoundingOptions
from qpass_passes.reconstruction.objective import Objective


@attrs.frozen(kw_only=True)
class AdaRound(RoundingOptions, ChainPass):
    """Round each weight up or down so that its layer's output changes least (Nagel et al., 2004.10568).

    min over V of ||W x - W~(V) x^||² + strength · Σ 1 - |2 h(V) - 1|^beta, equations 21 to 25, layer after layer: x
    are the layer's inputs in full precision, x^ those that the layers before it, already rounded, give (the paper's
    asymmetric reconstruction). Inputs are not rounded meanwhile. Iterations, batch, rate and strength are those of
    the authors' code (10,000, 32, 1e-3 and 0.01; Q-Diffusion and those after it take 20,000, the default here).
    """

    name: ClassVar[str] = "adaround"

    def objective(self) -> Objective:
        return self.chosen(unit="layer")
