"""Divide the channels of what layers read by a factor, and multiply their weights by it.

The division goes into the affine norm that made the tensor or the linear that modulates it, where nobody else reads
what changes; else it stands as a `rescale` node, which whoever realises the graph takes into the quantizer behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

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
_AXES = (aten.transpose.int, aten.permute.default)
_KEEPING = (
    *_MOVING,
    *_NORMS,
    aten.silu.default,
    aten.gelu.default,
    aten.relu.default,
)  # as many axes as they read
_BROADCAST = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
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
    readers: set[Node] = set(tie.calls)
    node, moves = tensor, list[Node]()
    while set(node.users) <= readers:
        if node.target in _NORMS:
            given = bound(node)
            free = all(alone(graph, given.get(part)) for part in ("weight", "bias"))
            along = _along(graph, tie, node, moves)
            return node if along and isinstance(given["weight"], Node) and free else None
        if node.target not in _MOVING:
            return None
        moves.append(node)
        source = node.args[0]
        assert isinstance(source, Node)
        readers, node = {node}, source
    return None


def _along(graph: GraphModule, tie: Tie, norm: Node, moves: list[Node]) -> bool:
    """Whether the layers' channels, followed back through changes of axes to the norm, are the norm's own."""
    axis = -1 if tie.layout == reference.CHANNEL_LAST else 1
    made = 1 if norm.target is aten.group_norm.default else -1
    moves = [node for node in moves if node.target in _AXES]
    if not moves and axis == made:
        return True
    # nothing on the way changes how many axes there are, and a convolution reads as many as its weight has
    weight = graph.get_submodule(tie.name).weight
    assert isinstance(weight, Tensor)
    rank = weight.dim() if tie.layout == reference.CHANNEL_FIRST else _rank(graph, moves[0] if moves else norm)
    if rank is None:
        return False
    axis %= rank
    for node in moves:
        order = list(range(rank))
        if node.target is aten.permute.default:
            order = [place % rank for place in cast(Sequence[int], node.args[1])]
        else:
            one, other = (place % rank for place in cast(Sequence[int], node.args[1:3]))
            order[one], order[other] = order[other], order[one]
        axis = order[axis]
    return axis == made % rank


def _rank(graph: GraphModule, node: Node) -> int | None:
    """How many axes a tensor has, where the graph says it: by what made it, or what made that."""
    if node.target in (aten.view.default, aten.reshape.default, aten.permute.default):
        return len(node.args[1])  # type: ignore[arg-type]
    module = layer(graph, node)
    if module is not None and not isinstance(module, nn.Linear):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.dim()
    if node.target in _BROADCAST:
        found = [_rank(graph, part) for part in node.all_input_nodes]
        return None if None in found else max(one for one in found if one is not None)
    if (module is not None or node.target in _KEEPING) and isinstance(node.args[0], Node):
        return _rank(graph, node.args[0])
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
