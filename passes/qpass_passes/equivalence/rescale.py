"""Divide the channels of what layers read by a factor, and multiply their weights by it.

The division goes into the affine norm that made the tensor or the linear that modulates it, where nobody else reads
what changes; else it stands as a `rescale` node, which whoever realises the graph takes into the quantizer behind it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qpass.graph.names import inherit, origins
from qpass.graph.nodes import aten, attribute, bound
from qpass.graph.tensors import put
from qpass.kernels import reference
from qpass.slots import find, layer
from qpass_passes.equivalence.modulation import fold, modulation
from qpass_passes.equivalence.readers import FLAT, alone
from qpass_passes.equivalence.ties import Tie

_NORMS = (aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default)
_MOVING = (aten.transpose.int, aten.permute.default, aten.contiguous.default, aten.clone.default, aten.to.dtype)
Where = Literal["norm", "modulation", "quantizer"]


def rescale(graph: GraphModule, tie: Tie, factor: Tensor, offset: Tensor | None = None) -> Where:
    """From now on the tied layers read `x / factor + offset`, (C,) both, and give what they gave.

    An offset would also have to fill a convolution's padding, which is zero: it is for layers without.
    """
    for name in tie.layers:
        _into_weight(graph.get_submodule(name), factor, offset)
    norms = [_norm(graph, tensor, tie) for tensor in tie.tensors]
    if all(norm is not None and (offset is None or _bias(norm) is not None) for norm in norms):
        for norm in dict.fromkeys(norms):
            assert norm is not None
            _into_norm(graph, norm, factor, offset)
        return "norm"
    if tie.layout == reference.CHANNEL_LAST:
        modulations = [modulation(graph, tensor, tie) for tensor in tie.tensors]
        if all(made is not None for made in modulations):
            for made in {made.add: made for made in modulations if made is not None}.values():
                fold(graph, made, factor, offset, f"{tie.name}.modulation")
            return "modulation"
    _before_quantizers(graph, tie, factor, offset)
    return "quantizer"


def takes_offset(graph: GraphModule, tie: Tie) -> bool:
    """Whether no tied layer pads its input."""
    paddings = [getattr(layer(graph, node), "padding", "valid") for node in tie.calls]
    return all(padding == "valid" if isinstance(padding, str) else not any(padding) for padding in paddings)


def after_norm(graph: GraphModule, tie: Tie) -> bool:
    """Whether all that the tied layers read comes from a norm, modulated or not."""
    return all(_from_norm(tensor) for tensor in tie.tensors)


def _into_weight(module: nn.Module, factor: Tensor, offset: Tensor | None) -> None:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    wide = factor.to(weight.device).reshape([1, -1] + [1] * (weight.dim() - 2))
    scaled = weight.detach().float() * wide
    module.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    if offset is not None:
        shift = scaled.flatten(2).sum(2) if scaled.dim() > 2 else scaled
        moved = shift.double() @ offset.to(shift.device).double()
        old = torch.zeros_like(moved) if bias is None else bias.detach().double()  # type: ignore[operator]
        module.bias = nn.Parameter((old - moved).to(weight.dtype), requires_grad=False)


def _norm(graph: GraphModule, tensor: Node, tie: Tie) -> Node | None:
    """The affine norm that makes the tensor for the tied layers alone, along their channels."""
    axis = -1 if tie.layout == reference.CHANNEL_LAST else 1
    readers: set[Node] = set(tie.calls)
    node, swaps = tensor, 0
    while set(node.users) <= readers:
        if node.target in _NORMS:
            made = 1 if node.target is aten.group_norm.default else -1
            reached = axis if not swaps % 2 else {1: -1, -1: 1}[axis]
            given = bound(node)
            free = all(alone(graph, given.get(part)) for part in ("weight", "bias"))
            return node if reached == made and isinstance(given["weight"], Node) and free else None
        if node.target is aten.transpose.int and {*node.args[1:]} in ({1, 2}, {-1, 1}, {-1, -2}):
            swaps += 1
        elif node.target not in _MOVING or node.target in (aten.transpose.int, aten.permute.default):
            return None
        source = node.args[0]
        assert isinstance(source, Node)
        readers, node = {node}, source
    return None


def _bias(norm: Node) -> Node | None:
    found = bound(norm).get("bias")
    return found if isinstance(found, Node) else None


def _into_norm(graph: GraphModule, norm: Node, factor: Tensor, offset: Tensor | None) -> None:
    for part in ("weight", "bias"):
        node = bound(norm).get(part)
        if isinstance(node, Node):
            owner, _, leaf = str(node.target).rpartition(".")
            old = attribute(graph, str(node.target)).detach()
            new = old.float() / factor.to(old.device)
            if part == "bias" and offset is not None:
                new = new + offset.to(old.device)
            holder = graph.get_submodule(owner)
            delattr(holder, leaf)
            setattr(holder, leaf, nn.Parameter(new.to(old.dtype), requires_grad=False))


def _before_quantizers(graph: GraphModule, tie: Tie, factor: Tensor, offset: Tensor | None) -> None:
    """A node for each tensor, on buffers that all of them share."""
    taken, order = origins(graph.graph), {node: place for place, node in enumerate(graph.graph.nodes)}
    for tensor in tie.tensors:
        inverse, shift, source = factor.reciprocal(), offset, tensor
        if tensor.target is reference.rescale:  # two in a row are one
            before = [attribute(graph, str(part.target)) for part in tensor.args[2:] if isinstance(part, Node)]
            inverse = before[0].cpu() * inverse
            if len(before) > 1:
                shift = before[1].cpu() / factor + (0 if offset is None else offset)
            assert isinstance(tensor.args[0], Node)
            source = tensor.args[0]
        readers = [node for node in tie.calls if node.args[0] is tensor]
        first = min(readers, key=order.__getitem__)
        home = f"{first.target}.rescale"
        while find(graph, f"{home}.inverse") is not None:
            home += "d"
        with graph.graph.inserting_before(first):
            parts = {"inverse": inverse, **({} if shift is None else {"offset": shift})}
            for part, value in parts.items():
                put(graph, f"{home}.{part}", value.to(_device(graph)))
            reads = [graph.graph.get_attr(f"{home}.{part}") for part in parts]
            node = graph.graph.call_function(reference.rescale, (source, tie.layout, *reads))
        inherit(node, first, "rescale", taken).meta.pop("qpass", None)
        for reader in readers:
            reader.update_arg(0, node)
        if source is not tensor and not tensor.users:
            graph.graph.erase_node(tensor)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _device(graph: GraphModule) -> torch.device:
    return next(graph.parameters()).device


def _from_norm(node: Node) -> bool:
    """Up to changes of shape and one modulation, `norm(x) * (1 + scale) + shift`."""
    for step, below in ((aten.add.Tensor, (aten.mul.Tensor,)), (aten.mul.Tensor, _NORMS)):
        node = _same(node)
        if node.target is step:
            parts = [_same(part) for part in node.args[:2] if isinstance(part, Node)]
            node = next((part for part in parts if part.target in below), node)
    return _same(node).target in _NORMS


def _same(node: Node) -> Node:
    """The tensor whose values these are, before changes of shape."""
    while node.target in (*_MOVING, *FLAT) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node
