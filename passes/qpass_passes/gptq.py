"""GPTQ: round a weight column by column, and let the columns that are left make up for the error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qpass.activations import Samples, record
from qpass.graph import block_module
from qpass.graph.tensors import put
from qpass.kernels import reference
from qpass.manager import Pass, PassContext, PassResult
from qpass.slots import find, layer
from qpass_passes.fitting import FittingOptions, choose_rows
from qpass_passes.peculiar import peculiar
from qpass_passes.reconstruction.chain import chain, cut_into
from qpass_passes.reconstruction.rows import runs, scratch_pool
from qpass_passes.reconstruction.soft import SoftBlock, SoftLayer
from qpass_passes.reconstruction.streams import Streams

CHUNK = 64 << 20  # bytes of patches, in double precision, that are multiplied at a time
WIDTH = 128  # columns that are finished together before the rest is brought up to date


@attrs.frozen(kw_only=True)
class Gptq(FittingOptions, Pass):
    """Minimise ||W X - W~ X||² layer by layer with the inverse of H = 2 X X^T (Frantar et al., 2210.17323).

    X (inputs x rows) are the layer's inputs as the layers before it, already rounded, give them; of a convolution,
    its patches. A layer that is called again later is rounded once, for the inputs of all its calls: those of the
    later ones are full precision's, as what comes between is not rounded yet. Damping is a share of H's
    mean diagonal, 0.01 in the paper. Columns are taken by falling diagonal (the authors' `act-order`) or as they
    stand. Convolutions in one or three dimensions, grouped ones, and codebooks are left to rounding to nearest; the
    notes name them.
    """

    name: ClassVar[str] = "gptq"
    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"corrected", "realised"})

    rows: int = attrs.field(
        default=512,
        validator=v.ge(4),
        metadata={"help": "calibration rows that H is summed over; all, where fewer"},
    )
    damping: float = attrs.field(
        default=0.01, validator=v.gt(0), metadata={"help": "added to H, as a share of its mean diagonal"}
    )
    order: Literal["diagonal", "as-is"] = attrs.field(
        default="diagonal", validator=v.in_(("diagonal", "as-is")), metadata={"help": "of the columns"}
    )
    activations: bool = attrs.field(
        default=True, metadata={"help": "whether inputs are rounded in what layers are given"}
    )

    @torch.no_grad()
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Roll the rounded model forward, layer by layer, and leave codes at the weights' slots."""
        self.fit_missing(graph, ctx, self.name, inputs=self.activations)
        samples = choose_rows(ctx.get(ctx.calibration, graph), self.rows, ctx.seed)
        odd = peculiar(graph, samples, ctx.device)
        cut = chain(graph, cut_into(graph, "layer"), samples, ctx.device, budget=ctx.memory_budget)
        later = called_again(graph, samples, ctx)
        moved: dict[str, float] = {}
        left: list[str] = []
        with scratch_pool(ctx) as pool, ctx.progress.task("gptq", len(cut.blocks)) as task:
            streams = Streams(graph, cut, samples, pool, ctx.device)
            for block, gone in zip(cut.blocks, cut.dies, strict=True):
                soft = SoftBlock(graph, block, weights=True, steps=False).eval().to(ctx.device)
                soft.set(soft=False, activations=self.activations, drop=0.0)
                streams.advance_full(block, block_module(graph, block))
                for one in soft.layers.values():
                    if one.learns and _product(one.inner):
                        h = hessian(soft, one, streams)
                        codes = self._rounded(one, h + later.pop(one.slot.home, 0))
                        moved[one.slot.home] = float((codes != one.codes).float().mean())
                        one.give_back(codes)
                        put(graph, f"{one.slot.home}.codes", codes)
                    elif find(graph, f"{one.slot.home}.codes") is None:
                        left.append(str(one.slot.node.meta["origin"]))
                streams.advance_rounded(block, soft)
                streams.drop(gone)
                task.advance()
        flipped = round(sum(moved.values()) / max(1, len(moved)), 4)
        notes = {"layers": len(moved), "not to nearest": flipped, "left to rounding to nearest": left, **odd}
        return PassResult(graph=graph, changed=True, notes=notes)

    def _rounded(self, one: SoftLayer, h: Tensor) -> Tensor:
        wide = one.original.flatten(1).shape
        scale, zero = (part.expand_as(one.original).flatten(1) for part in (one.scale, one.zero))
        low, high = (
            part.expand_as(one.original).flatten(1) if isinstance(part, Tensor) else torch.full(wide, float(part))
            for part in (one.low, one.high)
        )
        h.diagonal().add_(self.damping * h.diagonal().mean())
        # where all inputs are always 0 any code is right; with 1, as in the authors' code, it is the nearest
        h.diagonal()[h.diagonal() == 0] = 1
        order = (
            h.diagonal().argsort(descending=True, stable=True)
            if self.order == "diagonal"
            else torch.arange(len(h), device=h.device)
        )
        weight, scale, zero, low, high = (
            part[:, order] for part in (one.original.flatten(1), scale, zero, low.to(h), high.to(h))
        )
        codes = round_columns(weight, scale, zero, low, high, h[order][:, order])
        return codes[:, order.argsort()].reshape(one.original.shape).to(one.codes.dtype)


def _product(layer: nn.Module) -> bool:
    """Whether each output of the layer is a product of one patch of its input."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def hessian(soft: SoftBlock, one: SoftLayer, streams: Streams) -> Tensor:
    """2 X X^T of the layer's inputs over all rows, in double precision."""
    total = _empty(one.inner)

    def add(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        _add(total, one.inner, given[0])

    handle = one.register_forward_pre_hook(add)
    for index in runs(len(streams.samples), streams.cut.forward):
        inputs = [streams.read_rounded(node, index) for node in soft.block.inputs]
        soft(streams.samples.t[index].to(streams.device), *inputs)
    handle.remove()
    return total


def called_again(graph: GraphModule, samples: Samples, ctx: PassContext) -> dict[str, Tensor]:
    """2 X X^T of what layers are given at their calls after the first, in full precision, by the weights' homes."""
    first: set[str] = set()
    again: list[Node] = []
    for node in graph.graph.nodes:
        module = layer(graph, node)
        if module is not None and _product(module):
            if str(node.target) in first:
                again.append(node)
            first.add(str(node.target))
    found: dict[str, Tensor] = {}
    sources = list(dict.fromkeys(node.all_input_nodes[0] for node in again))
    for values in record(graph, sources, samples, device=ctx.device, budget=ctx.memory_budget // 4):
        for node in again:
            module = graph.get_submodule(str(node.target))
            for x in values.get(node.all_input_nodes[0], []):
                total = found.setdefault(f"{node.target}.weight_q", _empty(module))
                _add(total, module, x.to(total.device))
    return found


def _empty(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    width = weight[0].numel()
    return torch.zeros(width, width, dtype=torch.float64, device=weight.device)


def _add(total: Tensor, layer: nn.Module, x: Tensor) -> None:
    for some in patches(layer, x):
        wide = some.double()
        total.addmm_(wide.T, wide, alpha=2)


def patches(layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """What each output of a layer is a product of, rows x inputs, in the order of the flattened weight.

    A few rows at a time, as those of a convolution are many times its input.
    """
    width = layer.weight[0].numel()  # type: ignore[index]
    most = max(1, CHUNK // (8 * width))
    if isinstance(layer, nn.Linear):
        yield from torch.split(x.reshape(-1, width), most)
        return
    assert isinstance(layer, nn.Conv2d)
    x = nn.functional.pad(x, around(layer), "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    (tall, wide), (down, along) = (
        [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)], layer.stride,
    )  # fmt: skip
    height, length = (x.shape[2] - tall) // down + 1, (x.shape[3] - wide) // along + 1
    lines = min(height, max(1, most // length))  # of the output
    for images in torch.split(x, max(1, most // (height * length))):
        for line in range(0, height, lines):
            last = min(line + lines, height) - 1
            strip = images[:, :, line * down : last * down + tall]
            columns = nn.functional.unfold(strip, layer.kernel_size, layer.dilation, 0, layer.stride)
            yield columns.transpose(1, 2).reshape(-1, width)


def around(layer: nn.Conv2d) -> tuple[int, ...]:
    """What is put around its input: left, right, top, bottom; of an odd total, "same" has the larger part last.

    >>> around(nn.Conv2d(1, 1, (2, 3), padding="same"))
    (1, 1, 0, 1)
    """
    if isinstance(layer.padding, str):
        totals = [
            d * (k - 1) if layer.padding == "same" else 0
            for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        height, width = ((total // 2, total - total // 2) for total in totals)
    else:
        height, width = ((one, one) for one in layer.padding)
    return (*width, *height)


def round_columns(weight: Tensor, scale: Tensor, zero: Tensor, low: Tensor, high: Tensor, h: Tensor) -> Tensor:
    """Codes of a weight, outputs x inputs, each column rounded after those before it have handed it their error."""
    left = weight.double().clone()
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    codes = torch.empty_like(left)
    for begin in range(0, left.shape[1], WIDTH):
        end = min(begin + WIDTH, left.shape[1])
        errors = left.new_zeros(len(left), end - begin)
        for i in range(begin, end):
            s, z = scale[:, i], zero[:, i]
            codes[:, i] = reference.clip(
                torch.round(left[:, i].float() * s.reciprocal()) + z, low[:, i], high[:, i]
            )
            error = (left[:, i] - (codes[:, i] - z) * s) / upper[i, i]
            left[:, i:end] -= error.unsqueeze(1) * upper[i, i:end]
            errors[:, i - begin] = error
        left[:, end:] -= errors @ upper[begin:end, end:]
    return codes
