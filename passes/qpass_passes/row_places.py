"""Where the rows of a batch stand in a tensor: along which axis and in what order, found by trying a few of them.

Images and tokens have a row at each place of their first axis. Inside a model rows may stand elsewhere: windows and
heads as several places each, sequences that go first in the second axis, both halves of a guided batch one after the
other. Sizes alone cannot tell these apart, so the values of a few rows are compared with those of some of them in
another order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qpass.activations import Samples
from qpass.errors import PreconditionError

ROWS = 3  # that are tried, and more where these are alike in some input
EXACT = 1e-5  # of a tensor's norm: what another order of rows may change, as it changes how sums are rounded
MOST = 1 << 18  # values of each row that are compared
SOUGHT = 1 << 10  # rows, at most, among which one is sought that is unlike the others
SAME = 0.05  # of it: beyond this, values are not those of the same rows


@attrs.frozen(kw_only=True)
class Places:
    """`axis` holds `outer` x B x `inner` places: `outer` times every row after the other, each with `inner` of them.

    >>> windows = torch.tensor([1, 1, 2, 2])
    >>> Places(inner=2).by_row(windows).tolist()
    [[[1, 1]], [[2, 2]]]
    >>> halves = torch.tensor([1, 2, 1, 2])
    >>> Places(outer=2).by_row(halves).tolist()
    [[[1], [1]], [[2], [2]]]
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def several(self) -> bool:
        """Whether a row has more than one place."""
        return self.outer * self.inner > 1

    @property
    def first(self) -> bool:
        """Whether the first axis counts rows, as what picks parameters for each row takes it to."""
        return self.axis == 0 and not self.several

    def by_row(self, value: Tensor) -> Tensor:
        """The tensor with the rows in the first axis."""
        if self.several:
            shape = [*value.shape[: self.axis], self.outer, -1, self.inner, *value.shape[self.axis + 1 :]]
            return value.reshape(shape).movedim(self.axis + 1, 0)
        return value.movedim(self.axis, 0)

    def as_given(self, value: Tensor) -> Tensor:
        """The inverse of `by_row`."""
        if self.several:
            return value.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2).contiguous()
        return value.movedim(0, self.axis).contiguous()


@torch.no_grad()
def look(
    graph: GraphModule, nodes: Iterable[Node], samples: Samples, device: torch.device
) -> Iterator[tuple[Node, Tensor, Places | None]]:
    """Each node with the values that a few rows give, and where these stand; None where they are the same for all.

    Values are let go as in any run: whoever keeps them holds all the model's. A `PreconditionError` where rows have no
    places of their own, as where values hang on the whole batch.
    """
    few, wanted = _distinct(samples), set(nodes)
    other = torch.arange(-1, len(few) - 2) % len(few)  # the last, the first, and so on: all but the one before it
    runs = [Interpreter(graph), Interpreter(graph)]
    for run, rows in zip(runs, (few, few[other]), strict=True):
        given = graph.graph.find_nodes(op="placeholder")
        run.env = dict(zip(given, next(samples.take(rows).batches(len(rows), device)), strict=True))
    for node in graph.graph.nodes:
        for run in runs:
            if node.op not in ("placeholder", "output"):
                run.env[node] = run.run_node(node)
        if node in wanted:
            first, second = (run.env[node] for run in runs)
            yield node, first, _places(node, first, second, other.to(device))
            wanted.remove(node)
            del first, second
        if not wanted:
            return
        for run in runs:
            for gone in run.user_to_last_uses.get(node, ()):
                del run.env[gone]


def _distinct(samples: Samples) -> Tensor:
    """A few rows from first to last, as values may grow from timestep to timestep, and no input the same for all."""
    rows = (torch.arange(ROWS) * (len(samples) - 1) // (ROWS - 1)).tolist()
    more = torch.arange(min(len(samples), SOUGHT)) * len(samples) // min(len(samples), SOUGHT)
    for place, part in enumerate(samples.inputs):
        if place not in samples.unbatched and bool((part[rows] == part[rows[0]]).all()):
            others = (part[more] != part[rows[0]]).reshape(len(more), -1).any(1)
            rows += more[others][:1].tolist()
    return torch.tensor(rows)


def _places(node: Node, first: Tensor, second: Tensor, order: Tensor) -> Places | None:
    """From the values of all the rows that were tried, and those of some in another order."""
    if first.shape == second.shape and _apart(first.unsqueeze(0), second.unsqueeze(0)) <= EXACT:
        return None
    least, best = float("inf"), Places()
    for one in _open(first.shape, second.shape, len(order)):
        if (error := _apart(one.by_row(first)[order], one.by_row(second))) < least:
            least, best = error, one
        if error <= EXACT:
            break
    if least > SAME:
        raise PreconditionError(
            f"the rows of a batch cannot be found in {str(node.meta.get('origin', node.name))!r}, a tensor of shape "
            f"{tuple(first.shape)} for {len(order) + 1} rows: each row must have places of its own along one axis, for "
            "blocks to be computed from chosen rows, for time groups and for channels' ranges by timestep; leave out "
            "the passes that go block by block or by channel, and 'time:'"
        )
    return best


def _open(first: torch.Size, second: torch.Size, count: int) -> Iterator[Places]:
    """All places that go with these shapes, of one row more than `count` and of so many."""
    apart = [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if len(apart) != 1:
        return
    (axis,) = apart
    per = second[axis] // count
    if (first[axis], second[axis]) == (per * (count + 1), per * count):
        for outer in range(1, per + 1):
            if per % outer == 0:
                yield Places(axis=axis, outer=outer, inner=per // outer)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over that of all, of some values of each row; those without end count as large."""
    total = norm = 0.0
    for row, other in zip(ours, theirs, strict=True):
        step = -(-row.numel() // MOST) | 1  # odd, so that it does not fall in with the sizes of axes
        a, b = (
            torch.nan_to_num(x.flatten()[::step].double(), nan=0.0, posinf=1e9, neginf=-1e9).clamp(-1e9, 1e9)
            for x in (row, other)
        )
        total, norm = total + float((a - b).square().sum()), norm + float(b.square().sum())
    return math.sqrt(total / norm if norm else total)
