"""The chain of blocks and what must be kept between them: the tensors that a later block still reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples, rows_within, widest_row
from qpass.graph import Block, blocks, blocks_ending_at
from qpass.slots import slots, spec_of
from qpass_passes.reconstruction.objective import Unit
from qpass_passes.reconstruction.rows import file_bytes
from qpass_passes.row_places import Places, look

FORWARD = 32  # rows in each batch that is only computed, not learned from


@attrs.frozen(kw_only=True, eq=False)
class Shape:
    """What one row of a tensor takes, and where the rows stand; None where there are none, and the value is kept.

    `like` is one of them, as `by_row` puts it, or the value.
    """

    like: Tensor
    places: Places | None
    largest: float

    @property
    def rows(self) -> bool:
        """Whether the tensor has any."""
        return self.places is not None

    @property
    def bytes(self) -> int:
        """Of one row."""
        return self.like[0].nbytes if self.rows else 0

    def by_row(self, value: Tensor) -> Tensor:
        """As `like` is."""
        return value if self.places is None else self.places.by_row(value)

    def as_given(self, value: Tensor) -> Tensor:
        """The inverse of `by_row`."""
        return value if self.places is None else self.places.as_given(value)

    def each(self, numbers: Tensor) -> Tensor:
        """A number for each row, as it multiplies all of that row's values in such a tensor."""
        if self.places is None:
            return numbers.mean()
        one = [1] * self.like.dim()
        if self.places.several:
            at = self.places.axis + 1
            one[at], one[at + 1] = self.places.outer, self.places.inner
        return self.places.as_given(numbers.reshape(-1, *[1] * (len(one) - 1)).expand(-1, *one[1:]))


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


def _shapes(graph: GraphModule, cut: Sequence[Block], samples: Samples, device: torch.device) -> dict[Node, Shape]:
    given = graph.graph.find_nodes(op="placeholder")
    nodes = [*given, *(node for block in cut for node in (*block.inputs, *block.outputs))]
    return {node: _shape(value, places) for node, value, places in look(graph, nodes, samples, device)}


def _shape(value: Tensor, places: Places | None) -> Shape:
    return Shape(
        like=(value if places is None else places.by_row(value)[:1].clone()).cpu(),
        places=places,
        largest=float(value.abs().max()) if value.is_floating_point() and value.numel() else 0.0,
    )
