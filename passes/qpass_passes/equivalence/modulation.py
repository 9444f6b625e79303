"""Take a factor into the linear that modulates a tensor: `y * (1 + scale) + shift`, as in adaptive norms.

`scale` and `shift` are rows of what one linear makes of the timestep. Those rows of its weight and bias are divided
by r, and the constant 1 becomes a buffer holding 1 / r: a bias that had to hold 1 / r - 1 would lose most of it in
bf16. What is modulated stays as it is.
"""

from __future__ import annotations

import operator
from itertools import count
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qpass.graph.nodes import aten
from qpass.graph.tensors import get, put
from qpass.slots import find, read_params, slots
from qpass_passes.equivalence.readers import FLAT, alone, read_only_by, unflat
from qpass_passes.equivalence.ties import Tie

_CUTS = (
    aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, operator.getitem,
    aten.slice.Tensor, aten.select.int,
)  # fmt: skip
_Rows = Any  # numbers of rows, in the shape of what holds them; a list of such tensors between a cut and its parts


@attrs.frozen(kw_only=True, eq=False)
class Modulation:
    """`linear` is called once, and these rows of it, by channel, are read here alone; `add` is `constant + scale`."""

    linear: str
    scale: Tensor
    shift: Tensor
    add: Node


def modulation(graph: GraphModule, tensor: Node, tie: Tie) -> Modulation | None:
    """What modulates the tensor for the tied layers alone, by the channels they read, if it can take a factor."""
    result = unflat(tensor)
    if not read_only_by(result, set(tie.calls)):
        return None
    channels = int(get(graph, f"{tie.name}.weight").shape[1])
    for before, shift in _operands(result, aten.add.Tensor):
        product = unflat(before)
        for modulated, scale in _operands(product, aten.mul.Tensor):
            found = _traced(graph, scale, shift, channels)
            if found is not None and modulated is not scale and read_only_by(product, {result}):
                made, rows = found
                alone_here = _read_by_these(rows, made, {(scale, product), (shift, result)})
                return made if alone_here and _may_change(graph, made.linear) else None
    return None


def fold(graph: GraphModule, made: Modulation, factor: Tensor, offset: Tensor | None, home: str) -> None:
    """The modulated tensor is divided by `factor`, and `offset` is added. A new buffer lies under `home`."""
    module = graph.get_submodule(made.linear)
    assert isinstance(module, nn.Linear)
    weight, wide = module.weight.detach().float().clone(), factor.to(module.weight.device)
    bias = None if module.bias is None else module.bias.detach().float().clone()
    for rows in (made.scale, made.shift):
        weight[rows] /= wide.unsqueeze(1)
        if bias is not None:
            bias[rows] /= wide
    if offset is not None:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        bias[made.shift] += offset.to(bias.device)
    dtype = module.weight.dtype
    module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    held = _constant(graph, made.add)
    assert held is not None
    place, constant = held
    if isinstance(constant, Node):  # taken in before
        old = get(graph, str(constant.target))
        put(graph, str(constant.target), (old.float() / wide).to(old.dtype))
        return
    names = (f"{home}{number or ''}.inverse" for number in count())
    name = next(name for name in names if find(graph, name) is None)
    put(graph, name, (constant / wide).to(dtype))
    with graph.graph.inserting_before(made.add):
        made.add.update_arg(place, graph.graph.get_attr(name))
    graph.recompile()


def _operands(node: Node, target: Any) -> list[tuple[Node, Node]]:
    """Both orders of what a sum or product of two tensors is made of."""
    if node.target is not target or node.kwargs or len(node.args) != 2:
        return []
    a, b = node.args
    return [(a, b), (b, a)] if isinstance(a, Node) and isinstance(b, Node) else []


def _traced(
    graph: GraphModule, scale: Node, shift: Node, channels: int
) -> tuple[Modulation, dict[Node, _Rows]] | None:
    """Both back to rows of one linear, with one constant on the way to the scale."""
    adds: list[Node] = []
    node = scale
    while node.op == "call_function" and (node.target in (*_CUTS, *FLAT) or _constant(graph, node) is not None):
        adds += [node] if node.target is aten.add.Tensor else []
        sources = [part for part in node.all_input_nodes if part.op != "get_attr"]
        if not sources:
            return None
        node = sources[0]
    if len(adds) != 1 or node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    if not isinstance(module, nn.Linear):
        return None
    rows = _rows(graph, node, torch.arange(module.out_features).unsqueeze(0))
    of_scale, of_shift, of_add = (_by_channel(rows.get(part), channels) for part in (scale, shift, adds[0]))
    if of_scale is None or of_shift is None or of_add is None:
        return None
    return Modulation(linear=str(node.target), scale=of_scale, shift=of_shift, add=adds[0]), rows


def _constant(graph: GraphModule, node: Node) -> tuple[int, Any] | None:
    """Where `scale + 1` has its constant, and that: a number, or the buffer it has become, read here alone."""
    if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
        return None
    for place, part in enumerate(node.args):
        if isinstance(part, int | float):
            return place, part
        if isinstance(part, Node) and part.op == "get_attr" and alone(graph, part):
            held = get(graph, str(part.target))
            if held.dim() == 1 and held.is_floating_point() and not isinstance(held, nn.Parameter):
                return place, part
    return None


def _rows(graph: GraphModule, node: Node, value: _Rows) -> dict[Node, _Rows]:
    """Which rows each tensor cut from a linear's output holds, and where: their numbers, cut alike."""
    found = {node: value}
    for user in node.users:
        if _constant(graph, user) is not None or user.target is aten.to.dtype:
            found |= _rows(graph, user, value)
        elif user.target in (*_CUTS, *FLAT) and user.all_input_nodes == [node]:
            try:
                cut: Any = user.target
                done = cut(value, *user.args[1:], **user.kwargs)
            except (IndexError, RuntimeError):  # made for another shape: it counts as a reader of every row
                continue
            found |= _rows(graph, user, done)
    return found


def _by_channel(rows: _Rows | None, channels: int) -> Tensor | None:
    """Row numbers in the order of channels, where channels are last and there is a row for each."""
    if not isinstance(rows, Tensor) or rows.numel() != channels or rows.shape[-1:] != (channels,):
        return None
    return rows.flatten()


def _read_by_these(rows: dict[Node, _Rows], made: Modulation, readers: set[tuple[Node, Node]]) -> bool:
    """Whether nobody else (what is read, by whom) reads the modulation's rows, each of which has one use."""
    wanted = torch.cat([made.scale, made.shift])
    if len(set(wanted.tolist())) != len(wanted):
        return False
    for node, value in rows.items():
        for user in node.users:
            if user in rows or (node, user) in readers:
                continue
            if not isinstance(value, Tensor) or not value.numel() or bool(torch.isin(value, wanted).any()):
                return False
    return True


def _may_change(graph: GraphModule, name: str) -> bool:
    """Whether the linear is called once, shares no parameter, and its weight has not been fitted."""
    module = graph.get_submodule(name)
    own = list(module.parameters())
    names = [n for n, p in graph.named_parameters(remove_duplicate=False) if any(p is one for one in own)]
    calls = [n for n in graph.graph.find_nodes(op="call_module") if n.target == name]
    reads = [n for n in graph.graph.find_nodes(op="get_attr") if n.target in names]
    fitted = any(
        slot.index < 0 and slot.node.target == name and read_params(graph, slot) is not None
        for slot in slots(graph)
    )
    return len(names) == len(own) and len(calls) == 1 and not reads and not fitted
