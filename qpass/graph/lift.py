"""Turns linears, convolutions and embeddings on parameters into modules under their own dotted names."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from qpass.graph.nodes import aten, attribute, bound, called

_CONVOLUTIONS: dict[Any, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv2d.padding: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv3d.padding: nn.Conv3d,
}
_CASTS = (aten.to.dtype, aten.to.device, aten.to.other, aten._to_copy.default, aten.type_as.default)


def lift_modules(graph: Graph, root: GraphModule, source: nn.Module) -> None:
    """Puts a module into `root` for each such call; calls of one module share it, parameters are kept.

    `source` is the module that was exported: it tells under which of two names a tied weight was used.
    """
    parameters = dict(source.named_parameters(remove_duplicate=False))
    lifted: dict[str, nn.Module] = {}
    for node in called(graph, aten.linear.default, aten.embedding.default, *_CONVOLUTIONS):
        given = bound(node)
        read = _uncast(given["weight"])
        weight, bias = _parameter(root, read), _parameter(root, _uncast(given.get("bias")))
        if weight is None or (bias is None and given.get("bias") is not None):
            continue
        name = _module_name(node, str(read.target), weight, parameters)
        made = _make(node, given, weight, bias)
        if not name or (name in lifted and not _same(lifted[name], made)):
            continue  # a module cannot be the root, nor stand for two different calls
        if name not in lifted:
            if not _place(root, name, made):
                continue
            lifted[name] = made
        with graph.inserting_before(node):
            call = graph.call_module(name, (given.get("input", given.get("indices")),))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _uncast(node: Any) -> Any:
    """What a value is before casts to the dtype that it has anyway, as in `weight.to(x.dtype)`."""
    while isinstance(node, Node) and node.target in _CASTS:
        source = node.args[0]
        if not isinstance(source, Node) or source.meta["val"].dtype != node.meta["val"].dtype:
            break
        node = source
    return node


def _parameter(root: nn.Module, node: Any) -> nn.Parameter | None:
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    found = attribute(root, str(node.target))
    return found if isinstance(found, nn.Parameter) else None


def _module_name(node: Node, fqn: str, weight: nn.Parameter, parameters: dict[str, nn.Parameter]) -> str:
    """The module that ran, if the weight is its own; else the module the parameter's name says.

    A parameter not named `weight` (`attn.in_proj_weight`) makes a module of its own (`attn.in_proj`);
    one with no such name makes none.
    """
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    running = stack[-1][0].partition("@")[0] if stack else ""
    own = parameters.get(f"{running}.weight")
    if own is weight:
        return str(running)
    owner, _, leaf = fqn.rpartition(".")
    if leaf == "weight":
        return owner
    packed = leaf.removesuffix("_weight")
    return f"{owner}.{packed}".removeprefix(".") if packed != leaf else ""


def _make(node: Node, given: dict[str, Any], weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    made: nn.Module
    if node.target is aten.linear.default:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    elif node.target is aten.embedding.default:
        padding = given["padding_idx"] if given["padding_idx"] >= 0 else None
        made = nn.Embedding(weight.shape[0], weight.shape[1], padding, device="meta")
    else:
        kind = _CONVOLUTIONS[node.target]
        groups = given["groups"]
        rest = {key: _each(given[key], weight.ndim - 2) for key in ("stride", "padding", "dilation")}
        sizes = weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])
        made = kind(*sizes, groups=groups, bias=bias is not None, device="meta", **rest)  # type: ignore[arg-type]
    made.weight = weight
    if bias is not None:
        made.bias = bias
    return made.eval()


def _each(value: Any, count: int) -> Any:
    """One number per spatial dimension, as modules write it; aten may give one for all."""
    if isinstance(value, str):
        return value
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    return numbers * count if len(numbers) == 1 else numbers


def _same(one: nn.Module, other: nn.Module) -> bool:
    def facts(module: nn.Module) -> tuple[Any, ...]:
        tensors = tuple(id(getattr(module, name, None)) for name in ("weight", "bias"))
        return type(module), module.extra_repr(), tensors

    return facts(one) == facts(other)


def _place(root: GraphModule, name: str, made: nn.Module) -> bool:
    """Puts the module where the exported graph has a plain container, and gives it all else that one holds.

    It cannot stand there where it has something else under a name that is read: a call without bias, say, of a
    layer whose bias is added later.
    """
    with contextlib.suppress(AttributeError):
        held = root.get_submodule(name)
        for kind in ("_parameters", "_buffers", "_modules"):
            if any(
                hasattr(made, key) and getattr(made, key) is not value for key, value in vars(held)[kind].items()
            ):
                return False
        for kind in ("_parameters", "_buffers", "_modules"):
            vars(made)[kind].update(vars(held)[kind])
    root.add_submodule(name, made)
    return True
