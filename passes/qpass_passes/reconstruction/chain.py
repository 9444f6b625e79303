"""The chain of blocks and what must be kept between them: the tensors that a later block still reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples, rows_within, widest_row
from qpass.graph import Block, block_module, blocks, blocks_ending_at
from qpass.slots import slots, spec_of
from qpass_passes.reconstruction.objective import Unit
from qpass_passes.reconstruction.rows import file_bytes

FORWARD = 32  # rows in each batch that is only computed, not learned from
PROBE = (2, 3)  # batch sizes that tell apart tensors with rows from those that are the same for all


@attrs.frozen(kw_only=True, eq=False)
class Shape:
    """What one row of a tensor takes.

    `per` places of the first axis belong to one row: 1 in images, more where windows, frames or heads stand there; 0
    where there are no rows, and the value is kept instead. `like` has an axis for the rows, and one for their places
    where these are several.
    """

    like: Tensor
    per: int
    largest: float

    @property
    def rows(self) -> bool:
        """Whether the tensor has any."""
        return self.per > 0

    @property
    def bytes(self) -> int:
        """Of one row."""
        return self.like[0].nbytes if self.rows else 0

    def by_row(self, value: Tensor) -> Tensor:
        """As `like` is."""
        return value.reshape(-1, self.per, *value.shape[1:]) if self.per > 1 else value

    def as_given(self, value: Tensor) -> Tensor:
        """The inverse of `by_row`."""
        return value.flatten(0, 1) if self.per > 1 else value


@attrs.frozen(kw_only=True, eq=False)
class Chain:
    """Blocks in order; `dies[i]` are the tensors that nobody reads after block i."""

    blocks: tuple[Block, ...]
    dies: tuple[tuple[Node, ...], ...]
    shapes: Mapping[Node, Shape]
    differs: frozenset[Node]  # tensors that rounding changes, so that both models' are kept
    forward: int  # rows in a batch that is only computed: fewer than usual where sequences or images are large

    def peaks(self, count: int, budget: int) -> tuple[int, int]:
        """The most bytes that so many rows of the live tensors take at once, in memory and on disk.

        Both models' are made in the engine's order, and placed as a `Pool` of that budget places them.
        """
        places: dict[tuple[Node, bool], tuple[int, int]] = {}
        memory = disk = 0
        peak = [0, 0]
        for block, gone in zip(self.blocks, self.dies, strict=True):
            made = [(node, False) for node in block.outputs]
            made += [(node, True) for node in block.outputs if node in self.differs]
            for node, rounded in made:
                if not (shape := self.shapes[node]).rows:
                    continue
                here = count * shape.bytes
                place = (
                    (here, 0) if memory + here <= budget else (0, count * file_bytes(shape.like, shape.largest))
                )
                places[node, rounded] = place
                memory, disk = memory + place[0], disk + place[1]
            peak = [max(peak[0], memory), max(peak[1], disk)]
            for node in gone:
                for rounded in (False, True):
                    freed = places.pop((node, rounded), (0, 0))
                    memory, disk = memory - freed[0], disk - freed[1]
        return peak[0], peak[1]


def cut_into(graph: GraphModule, unit: Unit) -> tuple[Block, ...]:
    """The whole graph as blocks, or as blocks that each end at one layer with a rounded weight."""
    if unit == "block":
        return blocks(graph)
    return blocks_ending_at(graph, {slot.node for slot in slots(graph) if slot.index < 0})


def chain(
    graph: GraphModule,
    cut: tuple[Block, ...],
    samples: Samples,
    device: torch.device,
    aims: Samples | None = None,
    *,
    budget: int,
) -> Chain:
    """The blocks, once a few of the rows have shown every tensor that crosses a cut.

    Where full precision has other rows, its `aims`, all that follows from what is not the same in both differs too.
    Batches that pass keep within half of `budget`, in bytes; the other half is for the rows themselves.
    """
    given = zip(graph.graph.find_nodes(op="placeholder"), samples.inputs, (aims or samples).inputs, strict=True)
    apart = [node for node, ours, theirs in given if ours is not theirs and not torch.equal(ours, theirs)]
    return Chain(
        blocks=cut,
        dies=_deaths(graph, cut),
        shapes=_shapes(graph, cut, samples, device),
        differs=_differing(cut, apart),
        forward=rows_within(budget // 2, widest_row(graph, samples, device), FORWARD),
    )


def _deaths(graph: GraphModule, cut: Sequence[Block]) -> tuple[tuple[Node, ...], ...]:
    last: dict[Node, int] = {}
    for index, block in enumerate(cut):
        for node in (*block.inputs, *block.outputs):
            last[node] = index
    given = set(graph.graph.find_nodes(op="placeholder"))
    return tuple(tuple(n for n, at in last.items() if at == index and n not in given) for index in range(len(cut)))


def _differing(cut: Sequence[Block], apart: Sequence[Node]) -> frozenset[Node]:
    found: set[Node] = set(apart)
    for block in cut:
        inside = {node for node in block.inputs if node in found}
        for node in block.nodes:
            if spec_of(node) is not None or any(source in inside for source in node.all_input_nodes):
                inside.add(node)
        found |= inside.intersection(block.outputs)
    return frozenset(found)


@torch.no_grad()
def _shapes(graph: GraphModule, cut: Sequence[Block], samples: Samples, device: torch.device) -> dict[Node, Shape]:
    seen: list[dict[Node, Tensor]] = []
    for size in PROBE:
        # from first to last, as values may grow from timestep to timestep; some twice, where there are fewer
        spread = samples.take(torch.arange(size) * (len(samples) - 1) // (size - 1))
        live = dict(zip(graph.graph.find_nodes(op="placeholder"), next(spread.batches(size, device)), strict=True))
        kept = dict(live)
        for block in cut:
            made = block_module(graph, block)(*(live[node] for node in block.inputs))
            live.update(zip(block.outputs, made, strict=True))
            kept.update(zip(block.outputs, made, strict=True))
        seen.append(kept)
    first, second = seen
    return {node: _shape(value, second[node]) for node, value in first.items()}


def _shape(first: Tensor, second: Tensor) -> Shape:
    """Of a tensor, from what it is with so many rows and with so many."""
    lengths = tuple(len(value) if value.dim() else 0 for value in (first, second))
    per = lengths[0] // PROBE[0]
    if lengths != (per * PROBE[0], per * PROBE[1]):
        per = 0
    return Shape(
        like=(first.reshape(-1, per, *first.shape[1:]) if per > 1 else first).cpu(),
        per=per,
        largest=float(second.abs().max()) if second.is_floating_point() and second.numel() else 0.0,
    )
