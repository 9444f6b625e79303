"""Takes out of an exported graph what is not the model's arithmetic: checks, no-ops, devices, pytrees."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from qpass.graph.nodes import aten, bound, called
from qpass.graph.ops import device_of

_CHECKS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)
_MODULES = ("_operator", "builtins", "math", "torch", device_of.__module__)
_ALIASES = (aten.alias.default, aten.detach.default, aten.detach_.default, aten.lift_fresh.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


def plain(exported: GraphModule, names: list[str]) -> Graph:
    """The exported graph with a tensor per placeholder and one tensor out, no pytree or guard around it."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    fresh = iter(names)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.placeholder(next(fresh))
            copies[node].meta = dict(node.meta)
        elif node.op == "output":
            (result,) = node.args[0]
            graph.output(copies[result])
        elif node.target != "_guards_fn":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph


def drop_noise(graph: Graph) -> None:
    """Removes assertions, operations that hand their input through, and whatever nobody reads."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if _is_check(node):
            graph.erase_node(node)
        elif _hands_through(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def free_layouts(graph: Graph) -> None:
    """Makes every view a reshape, whose value is the same: a view holds only in the memory layout that was traced.

    A rewrite may change that layout, as splitting attention does.
    """
    for node in called(graph, *_VIEWS):
        given = bound(node)
        node.target = aten.reshape.default
        node.args, node.kwargs = (given["self"], given["size"]), {}


def free_devices(graph: Graph) -> None:
    """Replaces every baked-in device by the device of the first input, read in the graph."""
    x = next(iter(graph.find_nodes(op="placeholder")))
    baked = [node for node in graph.nodes if node.op == "call_function" and _devices(node)]
    if not baked:
        return
    with graph.inserting_after(list(graph.find_nodes(op="placeholder"))[-1]):
        device = graph.call_function(device_of, (x,))

    def swap(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in baked:
        if node.target is aten.to.dtype_layout:
            given = bound(node)
            node.target = aten.to.device
            dtype = node.meta["val"].dtype if given["dtype"] is None else given["dtype"]
            node.args, node.kwargs = (given["self"], device, dtype), {}
        else:
            node.args = map_aggregate(node.args, swap)
            node.kwargs = map_aggregate(node.kwargs, swap)


def _is_check(node: Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet is not None and packet.__name__ in _CHECKS


def _hands_through(node: Node) -> bool:
    if node.target in _ALIASES:
        return True
    if node.target in _DROPOUTS:
        return not bound(node)["train"]
    if node.target is aten.slice.Tensor:
        given = bound(node)
        whole = given["end"] is None or (isinstance(given["end"], int) and given["end"] >= sys.maxsize)
        return given["start"] in (None, 0) and whole and given["step"] == 1
    return False


def _devices(node: Node) -> bool:
    found: list[torch.device] = []
    map_aggregate((node.args, node.kwargs), lambda v: found.append(v) if isinstance(v, torch.device) else v)
    return bool(found)


def is_mutating(node: Node) -> bool:
    """Whether a call writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def is_foreign(node: Node) -> bool:
    """Whether a call is to something a graph cannot carry: a higher-order op with code of its own."""
    known = isinstance(node.target, torch._ops.OpOverload) or getattr(node.target, "__module__", "") in _MODULES
    return node.op == "call_function" and not known
