"""How much each value of a block's output matters to the model's output: the weights of BRECQ's loss.

BRECQ (2102.05426, equation 10) weights the squared error of a block's output z by the squared gradient of the task's
loss. There are no labels here, and no loss but the squared error of the model's output y itself, whose Gauss-Newton
matrix at z is J^T J with J = dy/dz. Its diagonal is E[(J^T v)^2] over vectors v of random signs: one backward pass
through the model for each v, which gives the weights of all blocks at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qpass.activations import Samples
from qpass_passes.row_places import Places

BATCH = 4  # rows at a time: what the whole model needs for a backward pass is in memory at once


def fisher(
    graph: GraphModule,
    outputs: Collection[Node],
    samples: Samples,
    *,
    rows: int,
    seed: int,
    device: torch.device,
    places: Mapping[Node, Places | None],
) -> Mapping[Node, Tensor]:
    """A weight for each element of these outputs, of mean 1: shapes are those of one row, kept as a batch of one.

    The mean is over `rows` rows spread over all, each with signs of its own. Weights for each row by itself would
    double what is kept of the full-precision model.
    """
    chosen = samples.take(torch.linspace(0, len(samples) - 1, min(rows, len(samples))).long())
    signs = torch.Generator().manual_seed(seed)
    total: dict[Node, Tensor] = {}
    for inputs in chosen.batches(BATCH, device):
        tape = _Tape(graph, outputs)
        with torch.enable_grad():
            y = tape.run(*inputs)
        v = torch.randint(0, 2, y.shape, generator=signs).to(y) * 2 - 1
        found = torch.autograd.grad(y, list(tape.kept.values()), v, allow_unused=True)
        for node, gradient in zip(tape.kept, found, strict=True):
            # a tensor without rows, with several places for each, or one that the output does not see, has no say
            place = places[node]
            if gradient is not None and place is not None and not place.several:
                seen = gradient.detach().float().pow(2).sum(place.axis, keepdim=True)
                total[node] = total.get(node, 0) + seen
    return {node: (seen / seen.mean()).cpu() for node, seen in total.items() if seen.mean() > 0}


class _Tape(Interpreter):
    """Runs a graph and keeps some of its values, with gradients through them from then on."""

    def __init__(self, graph: GraphModule, nodes: Collection[Node]) -> None:
        super().__init__(graph)
        self.wanted = set(nodes)
        self.kept: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted and value.is_floating_point():
            if not value.requires_grad:
                value.requires_grad_()
            self.kept[n] = value
        return value
