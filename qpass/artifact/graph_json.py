"""A graph as JSON and back: ops by name from the allow-list, arguments, names and specs of every node.

torch.fx turns a graph into Python source, names and all, so every name that is read is checked first.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from qpass.artifact.ops import op_name, resolve
from qpass.errors import ArtifactError
from qpass.spec import NodeSpec, QuantSpec, parse_spec

_MODULES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Linear": (nn.Linear, ("in_features", "out_features")),
    "Embedding": (nn.Embedding, ("num_embeddings", "embedding_dim")),
    **{
        cls.__name__: (
            cls,
            ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
        )
        for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    },
}
_CONSTANTS: dict[type, str] = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}
_DOTTED = re.compile(r"[\w-]+(\.[\w-]+)*")
Ops = Mapping[str, tuple[Callable[..., Any], str]]


def graph_to_json(graph: GraphModule, plugin_ops: Ops) -> dict[str, Any]:
    """The graph as plain data. Nodes name each other by their place; repeated texts stand in tables."""
    places = {node: place for place, node in enumerate(graph.graph.nodes)}
    targets, stacks, specs = _Table(), _Table(), _Table()
    nodes = []
    for node in graph.graph.nodes:
        if node.op not in _OPS:
            raise ArtifactError(
                f"the graph calls the method {node.target!r}; call the function torch.ops.aten has for it"
            )
        target = op_name(node.target, plugin_ops) if node.op == "call_function" else str(node.target)
        nodes.append(
            [
                _OPS.index(node.op),
                targets.place(target),
                [_pack(a, places) for a in node.args],
                {k: _pack(a, places) for k, a in node.kwargs.items()},
                str(node.meta.get("origin", "")),
                stacks.place([list(entry) for entry in node.meta.get("stack", ())]),
                specs.place(_spec_to_json(node.meta.get("qpass"))),
            ]
        )
    called = {str(n.target) for n in graph.graph.nodes if n.op == "call_module"}
    modules = {name: _module_to_json(name, graph.get_submodule(name)) for name in sorted(called)}
    return {
        "nodes": nodes,
        "targets": targets.rows,
        "stacks": stacks.rows,
        "specs": specs.rows,
        "modules": modules,
    }


def graph_from_json(
    data: Mapping[str, Any], root: nn.Module, tensors: Collection[str], plugin_ops: Ops
) -> GraphModule:
    """The graph module again, over `root`, which holds the modules and the named tensors: all a node may reach."""
    graph = Graph()
    made: list[Node] = []
    specs = [_spec_from_json(row) for row in data["specs"]]
    stacks = [tuple((str(path), str(kind)) for path, kind in row) for row in data["stacks"]]
    for op, target, args, kwargs, origin, stack, spec in data["nodes"]:
        kind, name = _at(_OPS, op), _at(data["targets"], target)
        if kind == "call_function":
            name = resolve(name, plugin_ops)
        elif kind == "placeholder":
            name = identifier(name)
        elif kind != "output" and name not in (data["modules"] if kind == "call_module" else tensors):
            raise ArtifactError(f"the graph reads {name!r}, which is not stored")
        node = graph.create_node(
            kind,
            name,
            () if kind == "placeholder" else tuple(_unpack(a, made) for a in args),
            {identifier(k): _unpack(a, made) for k, a in kwargs.items()},
        )
        if origin:
            node.meta["origin"], node.meta["stack"] = str(origin), _at(stacks, stack)
        if _at(specs, spec) is not None:
            node.meta["qpass"] = specs[spec]
        made.append(node)
    if [n.op for n in made].index("output") != len(made) - 1:
        raise ArtifactError("the graph goes on after its output")
    graph.lint()
    return GraphModule(root, graph)


def dotted(name: str) -> str:
    """The name of a stored tensor or module, if it is one: words with dots between."""
    if not _DOTTED.fullmatch(name):
        raise ArtifactError(f"{name!r} cannot name a tensor or module; letters, digits, _, - and dots can")
    return name


def identifier(name: str) -> str:
    """The name of an argument, if it is one."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ArtifactError(f"{name!r} cannot name an argument")
    return name


def _at(rows: Sequence[Any], place: int) -> Any:
    """The row at a place; unlike a list's own, a place is not counted from the end."""
    if place < 0:
        raise IndexError(place)
    return rows[place]


def empty_module(row: list[Any], bias: bool) -> nn.Module:
    """A module of the table, without memory for its weights."""
    if row[0] not in _MODULES:
        raise ArtifactError(f"module class {row[0]!r} is not on the list of those an artifact may hold")
    cls, fields = _MODULES[row[0]]
    options = {f: tuple(v) if isinstance(v, list) else v for f, v in zip(fields, row[1:], strict=True)}
    if cls is not nn.Embedding:
        options["bias"] = bias
    return cls(**options, device="meta")


_OPS = ("placeholder", "get_attr", "call_function", "call_module", "output")


class _Table:
    """Rows kept once, addressed by their place."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, row: Any) -> int:
        key = repr(row)
        if key not in self._places:
            self._places[key] = len(self.rows)
            self.rows.append(row)
        return self._places[key]


def _module_to_json(name: str, module: nn.Module) -> list[Any]:
    kind = type(module).__name__
    if kind not in _MODULES or type(module) is not _MODULES[kind][0]:
        raise ArtifactError(f"module {name!r} is a {kind}, which an artifact cannot hold; write it as graph ops")
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise ArtifactError(f"module {name!r} pads with {module.padding_mode!r}; an artifact holds zero padding")
    return [kind, *(getattr(module, field) for field in _MODULES[kind][1])]


def _pack(value: Any, places: Mapping[Node, int]) -> Any:
    """An argument as JSON. A dict with one key marks what JSON has no word for."""
    if isinstance(value, Node):
        return {"n": places[value]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else {"f": repr(value)}
    if isinstance(value, list | tuple):
        return [_pack(v, places) for v in value]
    if isinstance(value, slice):
        return {"s": [_pack(v, places) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"d": str(value)}
    for kind, word in _CONSTANTS.items():
        if isinstance(value, kind):
            return {"c": [word, str(value).removeprefix("torch.")]}
    raise ArtifactError(f"an argument of type {type(value).__name__} has no place in an artifact: {value!r}")


def _unpack(value: Any, made: list[Node]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, made) for v in value]
    if not isinstance(value, dict):
        return value
    ((mark, content),) = value.items()
    if mark == "n":
        return _at(made, content)
    if mark == "f":
        return float(content)
    if mark == "s":
        return slice(*(_unpack(v, made) for v in content))
    if mark == "d":
        return torch.device(content)
    if mark == "c":
        word, name = content
        constant = getattr(torch, name, None)
        kinds = {w: kind for kind, w in _CONSTANTS.items()}
        if word in kinds and isinstance(constant, kinds[word]):
            return constant
    raise ArtifactError(f"unknown argument {value!r} in the graph")


def _spec_to_json(spec: Any) -> Any:
    if not isinstance(spec, NodeSpec):
        return None
    return [spec.execution, _quant_to_json(spec.weight), [_quant_to_json(s) for s in spec.inputs]]


def _quant_to_json(spec: QuantSpec | None) -> Any:
    if spec is None:
        return None
    return [str(spec), list(spec.bits)] if isinstance(spec.bits, tuple) else str(spec)


def _spec_from_json(row: Any) -> NodeSpec | None:
    if row is None:
        return None
    execution, weight, inputs = row
    return NodeSpec(
        execution=execution,
        weight=_quant_from_json(weight),
        inputs=tuple(_quant_from_json(s) for s in inputs),
    )


def _quant_from_json(row: Any) -> QuantSpec | None:
    if row is None:
        return None
    if isinstance(row, str):
        return parse_spec(row, symmetric=False)
    return attrs.evolve(parse_spec(row[0], symmetric=False), bits=tuple(row[1]))
