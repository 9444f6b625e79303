"""Timestep-channel joint reparameterization: one factor for each channel, made from all timesteps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.manager import PassContext
from qpass.quantizer import Quantizer
from qpass.slots import layer
from qpass_passes.equivalence.channel_factors import ChannelFactors, Move, globs, rows_seen
from qpass_passes.equivalence.channels import Channels
from qpass_passes.equivalence.ties import Tie
from qpass_passes.equivalence.trial import Trial
from qpass_passes.quantizers.mse import Mse


@attrs.frozen(kw_only=True)
class Tcr(ChannelFactors):
    """X' = X / r, W' = W r, where r weighs all timesteps together: TCR of TCAQ-DM (2412.16700).

    With m[t, d] the largest absolute value of channel d at timestep t and s[t] the target range: r[t, d] =
    m[t, d] / s[t] and r[d] = sum_t m[t, d] r[t, d] / sum_t m[t, d], so that timesteps with large activations count
    most. The authors published no code. From the paper: the two equations, and s[t] = min_d m[t, d]. Ours, as
    options: the 5th percentile of channels as target, since one dead channel would make the minimum zero; r within 1
    and 8; r^strength, the strength of each layer being the one among 0, 1/4, 1/2, 3/4 and 1 with the least error of
    its output, rounded as `assign` says, on `trial_rows` rows. The paper reparameterizes convolutions; linear layers
    take part as well unless `kinds` says otherwise. 1 / r goes into the affine norm that made the tensor or the
    linear that modulates it, else into the quantizer behind it. It is meant together with a scale for each group of
    timesteps: `int4 tensor time:20`.
    """

    name: ClassVar[str] = "tcr"

    groups: int = attrs.field(
        default=0,
        validator=v.ge(0),
        metadata={"help": "runs of timesteps whose maxima are taken together; 0 is each timestep for itself"},
    )
    target: Literal["min", "percentile", "mean"] = attrs.field(
        default="percentile",
        validator=v.in_(("min", "percentile", "mean")),
        metadata={"help": "s[t]: the least channel, one near it, or the geometric mean of all"},
    )
    percentile: float = attrs.field(
        default=5.0, validator=[v.ge(0), v.le(100)], metadata={"help": "which percentile of channels"}
    )
    limit: float = attrs.field(
        default=8.0,
        validator=v.ge(0),
        metadata={"help": "r stays within 1 and limit (1/limit and limit around the mean); 0 is no limit"},
    )
    maxima: Literal["all", "typical"] = attrs.field(
        default="all",
        validator=v.in_(("all", "typical")),
        metadata={"help": "m is the maximum over all rows, or the mean over rows of each one's"},
    )
    search: bool = attrs.field(
        default=True, metadata={"help": "choose each layer's strength by the error of its output"}
    )
    strength: float = attrs.field(
        default=1.0,
        validator=[v.ge(0), v.le(1)],
        metadata={"help": "the exponent of r in every layer, where none is searched for"},
    )
    power_of_two: bool = attrs.field(default=False, metadata={"help": "round r to powers of two"})
    kinds: Literal["all", "convolutions", "linear"] = attrs.field(
        default="all", validator=v.in_(("all", "convolutions", "linear")), metadata={"help": "which layers"}
    )
    layers: tuple[str, ...] = globs("globs of the layers to look at")
    rows: int = rows_seen()
    trial_rows: int = attrs.field(
        default=64, validator=v.ge(1), metadata={"help": "calibration rows that strengths are tried on"}
    )
    weight: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how scales of weights are fitted where a strength is tried"}
    )
    input: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how scales of inputs are fitted where a strength is tried"}
    )

    def wants(self, graph: GraphModule, tie: Tie) -> bool:
        """Layers of the kind that was asked for."""
        linear = isinstance(layer(graph, tie.calls[0]), torch.nn.Linear)
        return self.kinds == "all" or linear == (self.kinds == "linear")

    def choose(
        self, graph: GraphModule, ctx: PassContext, found: Sequence[Tie], channels: Channels
    ) -> tuple[Sequence[Move | None], Mapping[str, Any]]:
        """By the two equations and the strength that costs least; a strength of 0 leaves a tie as it is."""
        maxima = [channels.largest(tie) if self.maxima == "all" else channels.averaged(tie) for tie in found]
        factors = [self.factor(m) for m in maxima]
        strengths = self._strengths(graph, ctx, found, factors)
        moves = [
            Move(factor=self.rounded(factor.pow(strength))) if strength else None
            for factor, strength in zip(factors, strengths, strict=True)
        ]
        return moves, {
            "strength": {str(s): n for s, n in sorted(Counter(strengths).items())},
            "dead channels": sum(int((m.amax(0) == 0).sum()) for m in maxima),
        }

    def factor(self, maxima: Tensor) -> Tensor:
        """r, (C,), of maxima (T, C), before any strength."""
        together = by_group(maxima, self.groups) if self.groups else maxima
        r = joint(together, self.target, self.percentile)
        if self.limit:
            least = 1 / self.limit if self.target == "mean" else 1.0
            r = r.clamp(min(least, self.limit), self.limit)
        return r.float()

    def rounded(self, factor: Tensor) -> Tensor:
        """As it is, or to powers of two."""
        return torch.exp2(factor.log2().round()) if self.power_of_two else factor

    def _strengths(
        self, graph: GraphModule, ctx: PassContext, found: Sequence[Tie], factors: list[Tensor]
    ) -> list[float]:
        if not self.search:
            return [self.strength] * len(found)
        trial = Trial(weight=self.weight, input=self.input, rows=self.trial_rows)
        tried = [[self.rounded(factor.pow(s)) for s in STRENGTHS] for factor in factors]
        errors = trial.errors(graph, ctx, found, tried)
        return [STRENGTHS[min(range(len(e)), key=e.__getitem__)] for e in errors]


STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def by_group(maxima: Tensor, groups: int) -> Tensor:
    """Maxima of runs of timesteps of equal length, (G, C); no more groups than timesteps.

    >>> by_group(torch.tensor([[1.0], [5.0], [3.0], [2.0]]), 2)
    tensor([[5.],
            [3.]])
    """
    count = min(groups, len(maxima))
    ends = [len(maxima) * g // count for g in range(count + 1)]
    return torch.stack([maxima[a:b].amax(0) for a, b in pairwise(ends)])


def joint(maxima: Tensor, target: str, percentile: float) -> Tensor:
    """r[d] = sum_t m[t, d] (m[t, d] / s[t]) / sum_t m[t, d], (C,), in double precision; 1 for dead channels.

    Dead channels are no target either. Two timesteps, targets 1 and 2, a channel of 2 and then 6:

    >>> joint(torch.tensor([[1.0, 2.0], [2.0, 6.0]]), "min", 0)
    tensor([1.0000, 2.7500], dtype=torch.float64)
    """
    m = maxima.double()
    alive = m > 0
    ratios, weights = torch.zeros_like(m), m.clone()
    for t in range(len(m)):
        there = m[t][alive[t]]
        if not len(there):
            continue
        if target == "min":
            s = there.min()
        elif target == "percentile":
            s = torch.quantile(there, percentile / 100)
        else:
            s = there.log().mean().exp()
        ratios[t] = m[t] / s
    total = weights.sum(0)
    return torch.where(total > 0, (weights * ratios).sum(0) / total.clamp(min=1e-300), torch.ones_like(total))
