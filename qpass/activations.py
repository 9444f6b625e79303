"""Values inside a graph, recorded over calibration data without ever passing the memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qpass.progress import Progress

LIVE = 4  # tensors of the largest size that a model holds at a time
LEAST = 1 << 28  # bytes for these, however small the budget
FEW = 2  # rows that show how large tensors are


@attrs.frozen(kw_only=True, eq=False)
class Samples:
    """Calibration data: rows of denoiser inputs `(x, t, *cond)`, as a sampler would pass them.

    The inputs at the places `unbatched` have no rows: they are the same for all, such as Flux's positions.
    """

    inputs: tuple[Tensor, ...]
    unbatched: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def t(self) -> Tensor:
        """Each row's timestep."""
        return self.inputs[1]

    def take(self, rows: Tensor) -> Samples:
        """Some of the rows."""
        parts = (part if place in self.unbatched else part[rows] for place, part in enumerate(self.inputs))
        return Samples(inputs=tuple(parts), unbatched=self.unbatched)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """The rows in order, in batches on a device."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield tuple(
                (part if place in self.unbatched else part[rows]).to(device)
                for place, part in enumerate(self.inputs)
            )


class _Recorder(Interpreter):
    """Runs a graph and keeps the values of some nodes; stops after the last of them.

    `largest` is what the largest tensor on the way takes, in bytes.
    """

    def __init__(self, graph: GraphModule, nodes: Sequence[Node]) -> None:
        super().__init__(graph)
        self.wanted = set(nodes)
        self.kept: dict[Node, Tensor] = {}
        self.largest = 0

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.largest = max(self.largest, value.nbytes)
        if n in self.wanted:
            self.kept[n] = value.detach()
            if len(self.kept) == len(self.wanted):
                raise _SeenAll
        return value


class _SeenAll(BaseException):  # no error: an `Exception` would be told as one of the graph's
    """Nothing that comes after is wanted."""


@torch.no_grad()
def run_recording(graph: GraphModule, nodes: Sequence[Node], inputs: tuple[Tensor, ...]) -> dict[Node, Tensor]:
    """The values of some nodes for one batch."""
    return _run(graph, nodes, inputs).kept


def _run(graph: GraphModule, nodes: Sequence[Node], inputs: tuple[Tensor, ...]) -> _Recorder:
    recorder = _Recorder(graph, nodes)
    with suppress(_SeenAll):
        recorder.run(*inputs)
    return recorder


@torch.no_grad()
def widest_row(graph: GraphModule, samples: Samples, device: torch.device) -> int:
    """Bytes of the largest tensor that one row meets on its way through the graph."""
    few = min(FEW, len(samples))
    return _run(graph, (), next(samples.batches(few, device))).largest // few


def rows_within(budget: int, row: int, most: int) -> int:
    """How many rows may pass at a time, where the largest tensor on the way takes `row` bytes for each."""
    return min(most, max(1, max(budget, LEAST) // (LIVE * (row + 1))))


@torch.no_grad()
def record(
    graph: GraphModule,
    nodes: Sequence[Node],
    samples: Samples,
    *,
    device: torch.device,
    budget: int,
    batch: int = 64,
    progress: Progress | None = None,
    title: str = "record",
) -> Iterator[Mapping[Node, list[Tensor]]]:
    """Values of all nodes over all samples, batch by batch, for as many nodes at a time as fit in the budget.

    Batches are smaller where the largest tensor on the way, such as the softmax of long sequences, would not fit.
    """
    if not nodes:
        return
    few = min(FEW, len(samples))
    probe = _run(graph, nodes, next(samples.batches(few, device)))
    batch = rows_within(budget, probe.largest // few, batch)
    # what one value of each node takes over all samples
    sizes = {n: probe.kept[n].nbytes // few * len(samples) for n in nodes}
    groups: list[list[Node]] = [[]]
    for node in nodes:
        if groups[-1] and sum(sizes[n] for n in groups[-1]) + sizes[node] > budget:
            groups.append([])
        groups[-1].append(node)
    with (progress or Progress()).task(title, len(samples) * len(groups)) as task:
        for group in groups:
            kept: dict[Node, list[Tensor]] = {node: [] for node in group}
            for inputs in samples.batches(batch, device):
                for node, value in run_recording(graph, group, inputs).items():
                    kept[node].append(value.cpu())
                task.advance(len(inputs[0]))
            yield kept
            kept.clear()  # whoever was given it still holds it, while the next nodes are recorded
