"""Coordinate descent on the codes of layers whose output a block hands on: moves by one level, the best first.

Where a block passes a layer's output on element by element, as it does with the last layer of a residual branch, gated
or not, the block's squared error is quadratic in that layer's weights, each output channel apart. Soft rounding ends
near a minimum of it; moves of single codes, each where it lowers the error most (CDQuant's greedy descent, 2406.17542,
on the block's error in place of the layer's), find a lower one in seconds: they see hundreds of rows at once, and the
rounding as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpass_passes.reconstruction.objective import ROWS
from qpass_passes.reconstruction.soft import SoftLayer

PER_WEIGHT = 16  # output positions to look at for each weight of an output channel
ALIKE = 0.03  # how far apart, relatively, two probes may be that ought to find the same factors
MEMORY = 600 << 20  # bytes: of the second derivatives of one layer; where one matrix is more, its codes stay
CHUNK = 64 << 20  # bytes: of the inputs of output positions at a time


@attrs.frozen(kw_only=True, eq=False)
class View:
    """A block as its loss sees it. Every row belongs to a `group`: in it, output channels keep their proportions."""

    run: Callable[[Tensor], list[Tensor]]  # from the places of rows to outputs
    apart: Callable[[Tensor, list[Tensor]], list[tuple[Tensor, Tensor | float]]]  # how far off, and how it counts
    rows: Tensor  # places of those to look at, in order
    batch: int
    group: Tensor  # by place
    draws: torch.Generator


@attrs.frozen(kw_only=True, eq=False)
class Quadratic:
    """The loss's change as channel c's weights move by d: gradient[c] d + d (sum of weight[c, g] second[g]) d / 2."""

    gradient: Tensor  # channels x weights
    second: Tensor  # groups x weights x weights
    weight: Tensor  # channels x groups


def polish(layer: SoftLayer, view: View, moves: int) -> bool:
    """Move codes, so many times at most in each output channel; False where the block does not hand the layer on."""
    if (found := quadratic(layer, view)) is None:
        return False
    layer.give_back(descend(layer, found, moves))
    return True


def quadratic(layer: SoftLayer, view: View) -> Quadratic | None:
    """The loss by the layer's weights, or None where it is not quadratic in them, each output channel apart."""
    width = layer.original[0].numel()
    with _tapped(layer) as tap:
        first = view.rows[_even(len(view.rows), view.batch)]
        if not _groups(layer, 1) or not tap.can_be_moved or (positions := tap.handed_on(view, first)) == 0:
            return None
        wanted = max(ROWS, PER_WEIGHT * width // positions)
        return _summed(tap, view, view.rows[_even(len(view.rows), wanted)])


def _summed(tap: _Tap, view: View, rows: Tensor) -> Quadratic:
    """Over rows, a few positions at a time."""
    weight = tap.layer.original
    width = weight[0].numel()
    most = int(view.group.max()) + 1
    groups = 1 if tap.steady else _groups(tap.layer, most)
    of = view.group * groups // most
    gradient = weight.new_zeros(len(weight), width)
    second = weight.new_zeros(groups, width, width)
    seen = weight.new_zeros(len(weight), groups)
    for index in torch.split(rows, view.batch):
        given, slope, factors = tap.pull(view, index)
        step = max(1, CHUNK * len(index) // (4 * width * factors[..., 0].numel()))
        for some in torch.split(torch.arange(len(index)), step):
            for group in torch.unique(of[index[some]]):
                here = some[of[index[some]] == group].to(given.device)
                x = inputs_of(tap.layer.inner, given[here]).float()
                gradient += slope[here].flatten(0, -2).T @ x
                second[group] += x.T @ x
                seen[:, group] += factors[here].flatten(0, -2).T @ x.square().sum(1)
    norms = second.diagonal(dim1=1, dim2=2).sum(1)
    return Quadratic(gradient=gradient, second=second, weight=seen / norms.clamp(min=torch.finfo().tiny))


@torch.no_grad()
def descend(layer: SoftLayer, found: Quadratic, moves: int) -> Tensor:
    """The layer's codes after the moves. Channels move side by side: none has a part in another's loss."""
    codes = layer.codes.flatten(1).clone()
    step = layer.scale.expand_as(layer.original).flatten(1)
    ends = layer.low, layer.high
    low, high = (end.flatten(1) if isinstance(end, Tensor) and end.dim() else end for end in ends)
    slope = found.gradient * step
    bend = (found.weight @ found.second.diagonal(dim1=1, dim2=2)) * step.square() / 2
    for _ in range(moves):
        up = torch.where(codes < high, -slope - bend, -torch.inf)
        down = torch.where(codes > low, slope - bend, -torch.inf)
        gain, place = torch.maximum(up, down).max(1)
        channel = (gain > 0).nonzero()[:, 0]
        if not len(channel):
            break
        place = place[channel]
        by = torch.where(up[channel, place] >= down[channel, place], 1, -1)
        codes[channel, place] += by.to(codes.dtype)
        row = torch.einsum("cg,gcw->cw", found.weight[channel], found.second[:, place])
        slope[channel] += (by * step[channel, place])[:, None] * row * step[channel]
    return codes.reshape(layer.codes.shape)


def inputs_of(inner: nn.Module, x: Tensor) -> Tensor:
    """What each output position is a product of, a row each: positions x weights of an output channel."""
    if isinstance(inner, nn.Conv2d):
        padding = inner.padding
        assert not isinstance(padding, str)
        seen = F.unfold(x, inner.kernel_size, inner.dilation, padding, inner.stride)
        return seen.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def room(layers: Iterable[SoftLayer], groups: int) -> int:
    """Bytes that polishing these may take, one after the other."""
    each = [4 * one.original[0].numel() ** 2 * _groups(one, groups) for one in layers]
    return max(each, default=0) + CHUNK * any(each)


def _groups(layer: SoftLayer, wanted: int) -> int:
    """How many matrices of second derivatives there is room for."""
    return min(wanted, MEMORY // (4 * layer.original[0].numel() ** 2))


def _even(count: int, wanted: int) -> Tensor:
    """So many places of `count`, evenly apart: rows come ordered by timestep."""
    return torch.linspace(0, count - 1, min(count, wanted), dtype=torch.float64).round().long()


class _Tap:
    """On a layer: reads its input, moves its output, and finds how the block's loss hangs on that output."""

    def __init__(self, layer: SoftLayer) -> None:
        self.layer = layer
        self.shift: Tensor | None = None
        self.calls = 0
        self.steady = False  # whether all positions' factors are the same
        self.given = self.out = torch.empty(0)

    @property
    def can_be_moved(self) -> bool:
        inner = self.layer.inner
        if isinstance(inner, nn.Conv2d):
            return inner.groups == 1 and not isinstance(inner.padding, str) and inner.padding_mode == "zeros"
        return isinstance(inner, nn.Linear)

    def hook(self, _: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        self.calls += 1
        self.given = given[0].detach()
        self.out = (out.detach() if self.shift is None else out.detach() + self.shift).requires_grad_()
        return self.out

    def handed_on(self, view: View, index: Tensor) -> int:
        """Output positions in a row, or 0 where the output is not handed on element by element, once.

        Two probes, one that moves all elements the same way and one that moves each its own, find the same factors
        only if no element moves what another does, and each in proportion.
        """
        one, other = self._factors(view, index, even=True), self._factors(view, index, even=False)
        # rows are known by their timestep, which takes a first axis that counts them
        if len(one) != len(index):
            return 0
        alone = self.calls == 4  # a probe runs the block twice, and should meet the layer once each time
        same = bool((one - other).norm() <= ALIKE * one.norm()) and bool(one.any())
        self.steady = bool((one - one.flatten(0, -2).mean(0)).norm() <= ALIKE * one.norm())
        return one[0, ..., 0].numel() if alone and same else 0

    def pull(self, view: View, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's input, and the loss's first and second derivatives by its output, channels last."""
        factors = self._factors(view, index, even=True)
        with torch.enable_grad():
            ours = view.run(index)
            losses = [(apart.square() * counts).sum() / 2 for apart, counts in view.apart(index, ours)]
            (slope,) = torch.autograd.grad(torch.stack(losses).sum(), self.out)
        return self.given, self._channels_last(slope.float()), factors

    def _factors(self, view: View, index: Tensor, *, even: bool) -> Tensor:
        """The diagonal of J^T W J, J the outputs by the layer's own and W how they count; all of it, if diagonal."""
        with torch.enable_grad():
            ours = view.run(index)
            here = self.out
        size = here.detach().square().mean().sqrt().clamp(min=1e-3)
        signs = torch.randint(0, 2, here.shape, generator=view.draws).to(here) * 2 - 1
        self.shift = size * (torch.ones_like(here) if even else signs)
        with torch.no_grad():
            there = view.run(index)
        counts = [counts for _, counts in view.apart(index, ours)]
        moved = [(b.float() - a.detach().float()) * c for a, b, c in zip(ours, there, counts, strict=True)]
        with torch.enable_grad():
            total = torch.stack([(a.float() * m).sum() for a, m in zip(ours, moved, strict=True)]).sum()
            (back,) = torch.autograd.grad(total, here)
        found = back.float() / self.shift
        self.shift = None
        return self._channels_last(found)

    def _channels_last(self, y: Tensor) -> Tensor:
        return y.movedim(1, -1) if isinstance(self.layer.inner, nn.Conv2d) else y


@contextmanager
def _tapped(layer: SoftLayer) -> Iterator[_Tap]:
    tap = _Tap(layer)
    handle = layer.register_forward_hook(tap.hook)
    try:
        yield tap
    finally:
        handle.remove()
