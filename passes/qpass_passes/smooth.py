"""Move what makes inputs hard to round into the weights, a factor for each channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.manager import PassContext
from qpass_passes.equivalence.channel_factors import ChannelFactors, Move, globs, rows_seen
from qpass_passes.equivalence.channels import Channels
from qpass_passes.equivalence.ties import Tie


@attrs.frozen(kw_only=True)
class Smooth(ChannelFactors):
    """X' = X / c, W' = c W with c_d = s(X_d)^a / s(W_d)^(1 - a): nothing changes until something is rounded.

    s is a channel's salience, its largest absolute value; c has geometric mean 1. With `over = "max"` s(X) is the
    maximum over all timesteps: SmoothQuant (Xiao et al., 2211.10438, equation 4). With `over = "spearman"` it is
    PTQ4DiT's (Wu et al., 2405.16005): a mean over timesteps, weighted by softmax(-rho_t), rho_t
    being Spearman's correlation of s(X^t) with s(W), so that steps count where activations and weights are not
    salient in the same channels. Layers that read one tensor take one c. It goes into the affine norm that made the
    tensor or the linear that modulates it, else into the quantizer behind it, which multiplies anyway. Channels that
    are always zero keep c = 1. The papers smooth transformers' q, k, v, output and first feed-forward layers; `layers`
    picks any, all by default.
    """

    name: ClassVar[str] = "smooth"
    symbol: ClassVar[str] = "c"

    strength: float = attrs.field(
        default=0.5,
        validator=[v.ge(0), v.le(1)],
        metadata={"help": "a: the share of the spread that weights take"},
    )
    over: Literal["max", "spearman"] = attrs.field(
        default="max", validator=v.in_(("max", "spearman")), metadata={"help": "how timesteps are put together"}
    )
    limit: float = attrs.field(
        default=0.0, validator=v.ge(0), metadata={"help": "c stays within 1/limit and limit; 0 is no limit"}
    )
    layers: tuple[str, ...] = globs("globs of the layers to smooth")
    rows: int = rows_seen()

    def choose(
        self, graph: GraphModule, ctx: PassContext, found: Sequence[Tie], channels: Channels
    ) -> tuple[Sequence[Move], Mapping[str, Any]]:
        """By the saliences of what a tie reads and of its weights."""
        moves, dead = [], 0
        for tie in found:
            of_x, of_w = channels.largest(tie), tie.salience(graph).cpu()
            together = of_x.amax(0) if self.over == "max" else balanced(of_x, of_w)
            moves.append(Move(factor=factors(together, of_w, self.strength, self.limit)))
            dead += int(((together == 0) | (of_w == 0)).sum())
        return moves, {"dead channels": dead}


def factors(of_x: Tensor, of_w: Tensor, strength: float, limit: float = 0.0) -> Tensor:
    """c = s(X)^a / s(W)^(1 - a), (C,), around 1; 1 where either is zero.

    >>> factors(torch.tensor([4.0, 0.25, 0.0]), torch.ones(3), 0.5)
    tensor([2.0000, 0.5000, 1.0000])
    """
    alive = (of_x > 0) & (of_w > 0)
    logs = torch.zeros_like(of_x, dtype=torch.float64)
    logs[alive] = strength * of_x[alive].double().log() - (1 - strength) * of_w[alive].double().log()
    if bool(alive.any()):
        logs[alive] -= logs[alive].mean()
    if limit:
        bound = torch.tensor(max(limit, 1 / limit)).log()
        logs = logs.clamp(-bound, bound)
    return logs.exp().float()


def balanced(of_x: Tensor, of_w: Tensor) -> Tensor:
    """PTQ4DiT's salience of activations over timesteps: of_x is (T, C), of_w (C,)."""
    rho = torch.stack([spearman(step, of_w) for step in of_x])
    return (torch.softmax(-rho, 0).unsqueeze(1) * of_x).sum(0)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation, ties at their mean rank; 0 where either is constant.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 8.0, 9.0]))
    tensor(1.)
    """
    ranks = [_ranks(part) for part in (a, b)]
    x, y = (part - part.mean() for part in ranks)
    norm = x.norm() * y.norm()
    return (x @ y / norm if norm > 0 else torch.zeros((), dtype=torch.float64)).float()


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last: Tensor = counts.cumsum(0).double()
    ranks: Tensor = last - (counts.double() - 1) / 2
    return ranks[place]
