"""What things are called: `meta["origin"]` and `meta["stack"]`, independent of batch, dtype and device."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch.fx import Graph, Node

from qpass.graph.nodes import is_compute

_CALL = re.compile(r"@\d+")


def write_names(graph: Graph) -> None:
    """Writes both names on every compute node of a freshly exported graph and drops all other meta.

    A lifted module is its dotted name, `name#2` on its second call; any other op is `owner/op[k]`, where
    owner is the innermost module it ran in and k counts that op within that owner.
    """
    calls: Counter[str] = Counter()
    ops: Counter[str] = Counter()
    for node in graph.nodes:
        stack = _stack(node)
        node.meta = {}
        if not is_compute(node):
            continue
        if node.op == "call_module":
            name = str(node.target)
            calls[name] += 1
            origin = name if calls[name] == 1 else f"{name}#{calls[name]}"
        else:
            key = f"{stack[-1][0] if stack else ''}/{op_name(node)}"
            origin = f"{key}[{ops[key]}]"
            ops[key] += 1
        node.meta = {"origin": origin, "stack": stack}


def origins(graph: Graph) -> set[str]:
    """Every origin in use: `inherit` keeps new ones apart from them."""
    return {node.meta["origin"] for node in graph.nodes if "origin" in node.meta}


def inherit(node: Node, source: Node, op: str, taken: set[str]) -> Node:
    """Names a node that a rewrite makes for `source`: same owner, same index if it is free, another op.

    The source of `blocks.0.attn/softmax[0]` may be `blocks.0.attn/scaled_dot_product_attention[0]`; that of
    `conv_in/rescale[0]` is `conv_in`. The new origin is added to `taken`.
    """
    origin = str(source.meta["origin"])
    owner, slash, rest = origin.rpartition("/")
    if not slash:
        owner, _, rest = origin.partition("#")
    index = int(rest[rest.rindex("[") + 1 : -1]) if rest.endswith("]") else 0
    while f"{owner}/{op}[{index}]" in taken:
        index += 1
    taken.add(f"{owner}/{op}[{index}]")
    node.meta = {**source.meta, "origin": f"{owner}/{op}[{index}]"}
    return node


def op_name(node: Node) -> str:
    """The short name of what a node calls: `aten.add.Tensor` and `operator.add` are both `add`."""
    if node.op == "call_method":
        return str(node.target)
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(packet.__name__ if packet is not None else getattr(target, "__name__", target))


def _stack(node: Node) -> tuple[tuple[str, str], ...]:
    """Dotted path and class of the modules a node ran in, outermost first, without export's decorations."""
    found: list[tuple[str, str]] = []
    for path, kind in (node.meta.get("nn_module_stack") or {}).values():
        kind = kind if isinstance(kind, str) else kind.__name__
        if kind.startswith("_empty_nn_module_stack"):
            continue
        entry = (_clean(path), kind.rpartition(".")[2])
        if not found or found[-1] != entry:
            found.append(entry)
    return tuple(found)


def _clean(path: str) -> str:
    """A module path without the root's own name and the number of the call.

    >>> _clean("L__self__.blocks.0.attn@1")
    'blocks.0.attn'
    """
    return _CALL.sub("", path).removeprefix("L__self__").removeprefix("L['self']").lstrip(".")
