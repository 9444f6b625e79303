"""The loop that papers describe and research code runs, to hold the engine against: rows in memory, eager, fp32."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import GraphModule


class Grid(NamedTuple):
    """What a weight is rounded to: multiples of its scale, from the lowest code to the highest."""

    scale: Tensor
    low: int
    high: int


class Plain:
    """AdaRound's soft rounding of a block's layers, as its equations 21 to 25 read."""

    def __init__(self, block: GraphModule, grids: dict[str, Grid]) -> None:
        self.block, self.grids = block, grids
        self.weights = {n: block.get_submodule(n).weight.detach() for n in grids}
        self.v = {}
        for n, w in self.weights.items():
            rest = w / grids[n].scale - torch.floor(w / grids[n].scale)
            self.v[n] = (-torch.log(1.2 / (rest + 0.1) - 1)).requires_grad_()

    def h(self, n: str) -> Tensor:
        return torch.clamp(torch.sigmoid(self.v[n]) * 1.2 - 0.1, 0, 1)

    def run(self, inputs: list[Tensor], hard: bool) -> Tensor:
        made = {}
        for n, w in self.weights.items():
            up, grid = (self.v[n] >= 0).float() if hard else self.h(n), self.grids[n]
            made[f"{n}.weight"] = grid.scale * torch.clamp(torch.floor(w / grid.scale) + up, grid.low, grid.high)
        output: Tensor = functional_call(self.block, made, tuple(inputs))[0]
        return output

    def learn(self, inputs: list[Tensor], target: Tensor, iterations: int, batch: int) -> float:
        """Seconds of learning."""
        started = time.perf_counter()
        optimizer = torch.optim.Adam(list(self.v.values()), lr=1e-3)
        for step in range(iterations):
            index = torch.randperm(len(target))[:batch]
            loss = error(self.run([x[index] for x in inputs], False), target[index])
            if step >= 0.2 * iterations:
                beta = 2 + 18 * (1 - (step - 0.2 * iterations) / (0.8 * iterations))
                loss = loss + 0.01 * sum((1 - (2 * self.h(n) - 1).abs().pow(beta)).sum() for n in self.v)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.perf_counter() - started


def error(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).pow(2).sum(1 if ours.dim() == 4 else -1).mean()
