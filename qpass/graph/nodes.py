"""What a node is: a compute node, a python size, or something downstream of an input."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from qpass.graph.ops import device_of

aten = torch.ops.aten

_READS = (
    aten.sym_size.int,
    aten.sym_stride.int,
    aten.sym_numel.default,
    aten.sym_storage_offset.default,
    device_of,
)
_ARITHMETIC = frozenset(
    function
    for module in (operator, math, torch)
    for name, function in vars(module).items()
    if callable(function) and (module is not torch or name.startswith(("sym_", "_sym_")))
) - {operator.getitem}


def sizes(graph: Graph) -> set[Node]:
    """The nodes that hold no tensor but a python number or a device, read off a tensor's shape."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        sources = node.all_input_nodes
        if node.target in _READS or (node.target in _ARITHMETIC and sources and found.issuperset(sources)):
            found.add(node)
    return found


def is_compute(node: Node) -> bool:
    """Whether the node calls something; placeholders, attributes and the output do not.

    Size nodes call something too: `sizes` tells them apart.
    """
    return node.op in ("call_module", "call_function", "call_method")


def compute_nodes(graph: Graph) -> list[Node]:
    """The nodes that make tensors, in execution order: every call that is not a size."""
    skipped = sizes(graph)
    return [node for node in graph.nodes if is_compute(node) and node not in skipped]


def depends_on(gm: GraphModule, placeholder: int) -> set[Node]:
    """All compute nodes whose value depends on that input. A size read off its shape is not its value."""
    skipped = sizes(gm.graph)
    reached = {list(gm.graph.find_nodes(op="placeholder"))[placeholder]}
    for node in gm.graph.nodes:
        if is_compute(node) and node not in skipped and not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return {node for node in reached if is_compute(node)}


def attribute(module: torch.nn.Module, dotted: str) -> Any:
    """The attribute a `get_attr` node reads."""
    value: Any = module
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def bound(node: Node) -> dict[str, Any]:
    """The arguments of an aten call by name, with the defaults of its schema filled in."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    names = [argument.name for argument in arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return {a.name: given.get(a.name, a.default_value) for a in arguments}


def called(graph: Graph, *targets: Any) -> Iterator[Node]:
    """The nodes that call one of these functions, in execution order; the graph may change meanwhile."""
    yield from [n for n in graph.nodes if n.op == "call_function" and n.target in targets]
