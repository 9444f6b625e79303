"""Timesteps in groups: where one set of quantizer parameters ends and the next begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpass.errors import PreconditionError
from qpass.spec import QuantSpec


def edges_for(spec: QuantSpec, timesteps: Tensor) -> Tensor | None:
    """Edges (G-1,) that split the sampled timesteps into G runs of equal length, halfway between neighbours.

    >>> edges_for(QuantSpec(time_groups=2), torch.tensor([0, 10, 20, 30]))
    tensor([15.])
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
    first = torch.tensor([len(steps) * g // groups for g in range(1, groups)])
    edges: Tensor = (steps[first - 1] + steps[first]) / 2
    return edges


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
