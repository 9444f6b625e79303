"""Timesteps in groups: where one set of quantizer parameters ends and the next begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpass.errors import PreconditionError
from qpass.spec import QuantSpec


def edges_for(spec: QuantSpec, timesteps: Tensor) -> Tensor | None:
    """Edges (G-1,) of runs of as many sampled timesteps each, or of equal stretches of time.

    Groups by range are not known before a tensor was seen: theirs are the edges between all timesteps, of which
    `alike` keeps G-1.

    >>> edges_for(QuantSpec(time_groups=2), torch.tensor([0, 10, 20, 90]))
    tensor([15.])
    >>> edges_for(QuantSpec(time_groups=2, time_split="even"), torch.tensor([0, 10, 20, 90]))
    tensor([45.])
    >>> edges_for(QuantSpec(time_groups=2, time_split="range"), torch.tensor([0, 10, 20, 90]))
    tensor([ 5., 15., 55.])
    """
    groups = spec.time_groups
    if groups == 1:
        return None
    steps = torch.tensor(sorted(set(timesteps.float().tolist())))
    if groups > len(steps):
        raise PreconditionError(
            f"'{spec}' asks for {groups} time groups, but calibration saw only {len(steps)} timesteps; "
            "ask for fewer groups or sample more steps"
        )
    if spec.time_split == "even":
        return torch.linspace(float(steps[0]), float(steps[-1]), groups + 1)[1:-1]
    between: Tensor = (steps[1:] + steps[:-1]) / 2
    if spec.time_split == "range":
        return between
    first = torch.tensor([len(steps) * g // groups for g in range(1, groups)])
    return between[first - 1]


def alike(low: Tensor, high: Tensor, groups: int) -> list[int]:
    """Where runs of timesteps with these ranges, (T, K), begin, the first run left out, if there are to be that many.

    A timestep of range s in a run that spans S has log2(S / s) bits less of resolution than it would have by itself;
    the sum of all bits lost, over the K sets of parameters too, is as small as any split makes it. Found by dynamic
    programming, a run more at a time.

    >>> alike(torch.zeros(5, 1), torch.tensor([[1.0], [1.1], [9.0], [8.0], [8.5]]), 2)
    [2]
    """
    steps = len(low)
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    span = high - low
    bits = torch.where(span > 0, span, 1.0).log2()
    lost = torch.full((steps, steps + 1), torch.inf, dtype=torch.float64)  # of the run from i to before j
    for i in range(steps):
        whole = high[i:].cummax(0).values - low[i:].cummin(0).values
        wide = torch.where(whole > 0, whole, 1.0).log2()
        there = (span[i:] > 0).cumsum(0)  # where nothing was seen but zeros nothing is lost
        lost[i, i + 1 :] = (wide * there - bits[i:].cumsum(0)).sum(1).cpu()
    least, starts = lost[0], []
    for _ in range(groups - 1):
        least, before = (least[:-1, None] + lost).min(0)
        starts.append(before)
    found, end = [], steps
    for before in reversed(starts):
        end = int(before[end])
        found.append(end)
    return found[::-1]


def finest(edges: Sequence[Tensor]) -> Tensor:
    """Every edge that anyone asked for, in order."""
    every = sorted({float(edge) for part in edges for edge in part})
    return torch.tensor(every, device=edges[0].device)


def mapping(fine: Tensor, coarse: Tensor) -> Tensor:
    """Which coarse group each fine group lies in; fine edges contain the coarse ones.

    >>> mapping(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0]))
    tensor([0, 0, 1, 1])
    """
    starts = torch.cat([fine.new_full((1,), -torch.inf), fine])
    return torch.bucketize(starts, coarse, right=True)
