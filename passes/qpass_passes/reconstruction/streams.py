"""The tensors that are live between two blocks, of the full-precision model and of the rounded one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples
from qpass.graph import Block
from qpass_passes.reconstruction.chain import Chain
from qpass_passes.reconstruction.rows import Pool, Rows, runs
from qpass_passes.reconstruction.soft import SoftBlock

Read = Callable[[Node, Tensor], Tensor]
Given = Mapping[Node, tuple[Tensor, bool]]  # each input of the graph, and whether it is one for all rows


@attrs.frozen(kw_only=True, eq=False)
class Data:
    """A block's rows: its inputs in full precision and as the rounded model gives them, and what it should give."""

    t: Tensor
    full: Read
    rounded: Read
    target: Read
    count: int
    forward: int  # rows in a batch that is only computed
    device: torch.device
    each: Callable[[Node, Tensor], Tensor]  # a number for each row, shaped as it multiplies that tensor
    weights: Mapping[Node, Tensor] = attrs.field(factory=dict)  # of the error of outputs, where not all 1


class Streams:
    """The live tensors of both models. A tensor that rounding does not change is kept once.

    `aims` are what the full-precision model is given, row by row, where that differs from `samples`.
    """

    def __init__(
        self, graph: GraphModule, cut: Chain, samples: Samples, pool: Pool, device: torch.device,
        aims: Samples | None = None,
    ) -> None:  # fmt: skip
        self.cut, self.samples, self.pool, self.device = cut, samples, pool, device
        self.given = _given(graph, samples)
        self.aims = self.given if aims is None else _given(graph, aims)
        self.full: dict[Node, Rows | Tensor] = {}
        self.rounded: dict[Node, Rows | Tensor] = {}

    def data(self) -> Data:
        """What the block that comes next learns from."""
        return Data(
            t=self.samples.t, full=self.read_full, rounded=self.read_rounded, target=self.read_full,
            count=len(self.samples), forward=self.cut.forward, device=self.device,
            each=lambda node, numbers: self.cut.shapes[node].each(numbers).to(self.device),
        )  # fmt: skip

    def read_full(self, node: Node, index: Tensor) -> Tensor:
        return self._read(self.aims, self.full, node, index)

    def read_rounded(self, node: Node, index: Tensor) -> Tensor:
        return self._read(self.given, self.rounded if node in self.rounded else self.full, node, index)

    def _read(self, given: Given, kept: Mapping[Node, Rows | Tensor], node: Node, index: Tensor) -> Tensor:
        if node in given:
            value, fixed = given[node]
            return (value if fixed else value[index]).to(self.device)
        found = kept[node]
        if isinstance(found, Tensor):
            return found.to(self.device)
        return self.cut.shapes[node].as_given(found.read(index)).to(self.device)

    @torch.no_grad()
    def advance_full(self, block: Block, module: GraphModule) -> None:
        """Compute the block's outputs in full precision."""
        self._advance(block, self.full, lambda index: module(*(self.read_full(n, index) for n in block.inputs)))

    @torch.no_grad()
    def advance_rounded(self, block: Block, soft: SoftBlock) -> None:
        """Compute those outputs of the rounded block that rounding changes."""
        if not self.cut.differs.isdisjoint(block.outputs):
            t = self.samples.t
            self._advance(
                block,
                self.rounded,
                lambda index: soft(t[index].to(self.device), *(self.read_rounded(n, index) for n in block.inputs)),
                only=self.cut.differs,
            )

    def _advance(
        self, block: Block, kept: dict[Node, Rows | Tensor], run: Callable[[Tensor], tuple[Tensor, ...]],
        only: frozenset[Node] | None = None,
    ) -> None:  # fmt: skip
        wanted = [node for node in block.outputs if only is None or node in only]
        for node in wanted:
            shape = self.cut.shapes[node]
            if shape.rows:
                kept[node] = self.pool.rows(len(self.samples), shape.like, shape.largest)
        for index in runs(len(self.samples), self.cut.forward):
            for node, value in zip(block.outputs, run(index), strict=True):
                if node in wanted:
                    place = kept.get(node)
                    if isinstance(place, Rows):
                        place.write(int(index[0]), self.cut.shapes[node].by_row(value.cpu()))
                    else:
                        kept[node] = value

    def centre(self, node: Node, axis: int) -> Tensor:
        """Move the rounded model's tensor so that its mean along every other axis is that of full precision.

        Returns by how much. A tensor that rounding does not change is left as it is.
        """
        total, count = torch.zeros(()), len(self.samples)
        for index in runs(count, self.cut.forward):
            apart = self.read_full(node, index).double() - self.read_rounded(node, index).double()
            total = total + apart.movedim(axis, 0).flatten(1).mean(1) * (len(index) / count)
        shift = total.float()
        kept = self.rounded.get(node)
        if isinstance(kept, Rows):
            for index in runs(count, self.cut.forward):
                rounded = self.read_rounded(node, index)
                shape = [1] * rounded.dim()
                shape[axis] = -1
                moved = (rounded + shift.reshape(shape)).cpu()
                kept.write(int(index[0]), self.cut.shapes[node].by_row(moved))
        return shift

    def drop(self, nodes: tuple[Node, ...]) -> None:
        """Forget tensors that nobody will read."""
        for node in nodes:
            for kept in (self.full, self.rounded):
                found = kept.pop(node, None)
                if isinstance(found, Rows):
                    found.close()


def _given(graph: GraphModule, samples: Samples) -> Given:
    places = enumerate(zip(graph.graph.find_nodes(op="placeholder"), samples.inputs, strict=True))
    return {node: (value, place in samples.unbatched) for place, (node, value) in places}
