"""What learning will take, found by trying: a few iterations of each kind of block, on one batch, then thrown away."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import GraphModule, Node

from qpass.activations import Samples
from qpass.graph import Block, block_module
from qpass.progress import Task
from qpass_passes.reconstruction.block import reconstruct
from qpass_passes.reconstruction.chain import Chain
from qpass_passes.reconstruction.descent import room
from qpass_passes.reconstruction.objective import Objective
from qpass_passes.reconstruction.soft import SoftBlock, softened
from qpass_passes.reconstruction.streams import Data

TRIES = 3  # iterations: the first is slower than all that follow
PER_WEIGHT = (
    24  # bytes: the variable, its gradient, Adam's two, the weight as rounded, and what a step makes of them
)
TEMPORARY = 4  # tensors of the largest size, beside those that a backward pass needs


@attrs.frozen(kw_only=True)
class Cost:
    """Of a block: seconds that an iteration takes, seconds that a row takes to pass, and bytes while it learns.

    The bytes come from the shapes of tensors alone, so that equal runs are told the same.
    """

    iteration: float = 0.0
    row: float = 0.0
    memory: int = 0


@torch.no_grad()
def probe(
    graph: GraphModule,
    cut: Chain,
    work: Sequence[tuple[int, ...]],
    samples: Samples,
    objective: Objective,
    device: torch.device,
) -> tuple[Cost, ...]:
    """The cost of each block. Neither the graph nor any generator is left changed."""
    # enough for a whole batch beside the rows that are held out
    count = min(len(samples), objective.batch + objective.batch // 7 + 1)
    given = graph.graph.find_nodes(op="placeholder")
    live = dict(zip(given, next(samples.batches(count, device)), strict=True))
    timesteps = len(torch.unique(samples.t))
    tried: dict[object, Cost] = {}
    found = []
    for block, targets, gone in zip(cut.blocks, work, cut.dies, strict=True):
        inputs = [live[node] for node in block.inputs]
        started = time.monotonic()
        made = block_module(graph, block)(*inputs)
        row = (time.monotonic() - started) / count
        live.update(zip(block.outputs, made, strict=True))
        largest = max((value.nbytes for value in (*inputs, *made)), default=0)
        cost = Cost(row=row, memory=TEMPORARY * largest * cut.forward // count)
        if targets:
            soft = softened(graph, block, objective).to(device)
            kind = _kind(block, soft, inputs)
            if kind not in tried:
                data = _data(live, cut, samples.t[:count], device)
                learning = _try(soft, data, objective, targets)
                polishing = room(soft.roundings(), timesteps) if objective.polish else 0
                tried[kind] = attrs.evolve(learning, memory=max(learning.memory, polishing))
            cost = attrs.evolve(tried[kind], row=row)
        found.append(cost)
        for node in gone:
            del live[node]
    return tuple(found)


def _kind(block: Block, soft: SoftBlock, inputs: Sequence[Tensor]) -> object:
    """Blocks that do the same on tensors of the same shapes are alike."""
    weights = tuple(tuple(one.original.shape) for one in soft.layers.values())
    return (len(block.nodes), weights, tuple(tuple(value.shape) for value in inputs))


def _data(live: Mapping[Node, Tensor], cut: Chain, t: Tensor, device: torch.device) -> Data:
    def read(node: Node, index: Tensor) -> Tensor:
        shape = cut.shapes[node]
        return shape.as_given(shape.by_row(live[node])[index.to(device)]) if shape.rows else live[node]

    return Data(
        t=t, full=read, rounded=read, target=read, count=len(t), forward=cut.forward, device=device,
        each=lambda node, numbers: cut.shapes[node].each(numbers).to(device),
    )  # fmt: skip


def _try(soft: SoftBlock, data: Data, objective: Objective, targets: tuple[int, ...]) -> Cost:
    few = attrs.evolve(objective, iterations=TRIES, polish=0, balance=0.0, settle=False, compiled=False)
    watch = _Watch({one.original.numel() for one in soft.layers.values()})
    with saved_tensors_hooks(watch.keep, lambda tensor: tensor):
        reconstruct(soft, data, few, targets, 0, watch)
    rows = min(objective.batch, data.count)
    learned = sum(one.v.numel() for one in soft.roundings())
    learning = watch.saved + TEMPORARY * watch.largest + PER_WEIGHT * learned
    passing = TEMPORARY * watch.widest * data.forward // rows
    times = [b - a for a, b in zip(watch.times, watch.times[1:], strict=False)]
    return Cost(iteration=min(times), memory=max(learning, passing))


class _Watch(Task):
    """Notes when each iteration ended, and what the greediest one kept for its backward pass."""

    def __init__(self, weights: set[int]) -> None:
        self.weights, self.times = weights, list[float]()
        # bytes of all, of the largest, and of the largest that is no weight and so has rows
        self.saved = self.largest = self.widest = 0
        self._kept: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()
        self.saved = max(self.saved, sum(self._kept.values()))
        self.largest = max(self.largest, tensor.nbytes)
        if tensor.numel() not in self.weights:
            self.widest = max(self.widest, tensor.nbytes)
        return tensor

    def advance(self, amount: int = 1) -> None:
        self.times.append(time.monotonic())
        self._kept.clear()
