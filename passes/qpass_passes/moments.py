"""How far one model's output is another's, scaled and shifted: regression by group, rows added as they come."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Moments of both models' outputs by group and channel, in float64."""

    def __init__(self, groups: int, channels: int | None) -> None:
        self.groups, self.channels = groups, channels
        self.moments: Tensor | None = None  # (5, G, C): how many, y, q, q y, y y
        self.shape: tuple[int, ...] = ()

    def add(self, theirs: Tensor, ours: Tensor, group: Tensor) -> None:
        """Rows of both, and the group of each."""
        axis = -1 if theirs.dim() == 3 else 1  # a sequence has its channels last
        y, q = (x.movedim(axis, 1).flatten(2).double().cpu() for x in (theirs, ours))
        found = torch.stack([x.sum(2) for x in (torch.ones_like(y), y, q, q * y, y * y)])
        if self.moments is None:
            self.moments = torch.zeros(5, self.groups, y.shape[1], dtype=torch.float64)
            self.shape = tuple(-1 if place == axis % theirs.dim() else 1 for place in range(1, theirs.dim()))
        self.moments.index_add_(1, group, found)

    def regress(self, least: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """1 + k of each group, and the gain and the shift that undo it; `least` of None leaves the gain at 1."""
        assert self.moments is not None
        count, y, q, both, square = self.moments
        count = count.clamp(min=1)  # of a group that is still to come
        few = slice(0, self.channels)  # the noise's own, where a variance comes with it
        mean_y, mean_q = y / count, q / count
        varying = (square - y * mean_y)[:, few].sum(1)
        along = (both - q * mean_y)[:, few].sum(1) / varying.clamp(min=1e-30)
        kept = torch.where(varying > 1e-30, along, 1.0)  # an output that is constant has nothing to shrink
        factor = torch.ones_like(kept) if least is None else 1 / kept.clamp(min=least)
        gain, shift = torch.ones_like(mean_y), torch.zeros_like(mean_y)
        gain[:, few] = factor[:, None]
        shift[:, few] = (mean_y - mean_q * gain)[:, few]
        spread = (self.groups, *self.shape)
        return kept, gain.float().reshape(spread), shift.float().reshape(spread)
