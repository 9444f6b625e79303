"""A graph as JSON and back: arguments of every kind, and specs."""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from qpass.artifact.graph_json import graph_from_json, graph_to_json
from qpass.errors import ArtifactError
from qpass.graph import trace
from qpass.spec import NodeSpec, QuantSpec, parse_spec

aten = torch.ops.aten


def through(graph: GraphModule) -> GraphModule:
    """The graph, written as JSON text and read again."""
    data = json.loads(json.dumps(graph_to_json(graph, {}), allow_nan=False))
    return graph_from_json(data, graph, (), {})


def calling(*nodes: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> GraphModule:
    """A graph of x that calls each function on x and the arguments given, and returns the last result."""
    graph = Graph()
    x = graph.placeholder("x")
    for function, args, kwargs in nodes:
        last = graph.call_function(function, (x, *args), kwargs)
    graph.output(last)
    return GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(
    "call",
    [
        (aten.permute.default, ([0, 2, 1],), {}),
        (aten.clamp.default, (-math.inf, 0.1 + 0.2), {}),
        (aten._to_copy.default, (), {"dtype": torch.bfloat16, "device": torch.device("cpu")}),
        (aten.clone.default, (), {"memory_format": torch.contiguous_format}),
        (aten.add.Tensor, (1,), {"alpha": 3}),
        (aten.add.Tensor, (True,), {}),
        (aten.full_like.default, (math.nan,), {"layout": torch.strided}),
        (aten.slice.Tensor, (2, 0, None), {}),
        (operator.getitem, (slice(None, 1, None),), {}),
        (aten.gelu.default, (), {"approximate": "tanh"}),
    ],
)  # fmt: skip
def test_arguments(call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
    """Numbers, infinities, NaN, lists, None, slices, dtypes, devices, layouts and text keep value and kind."""
    graph = calling(call)
    back = through(graph)
    for before, after in zip(graph.graph.nodes, back.graph.nodes, strict=True):
        assert str(before.args) == str(after.args)
        assert str(before.kwargs) == str(after.kwargs)
        assert before.target == after.target
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back(x).nan_to_num(7), graph(x).nan_to_num(7))
    assert back(x).dtype == graph(x).dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((aten.nan_to_num.default, (), {}), "calls aten.nan_to_num.default, which is not on the list"),
        ((aten.add_.Tensor, (1,), {}), "calls aten.add_.Tensor, which is not on the list"),
        ((print, (), {}), "calls <built-in function print>, which is not on the list"),
        ((aten.add.Tensor, (torch.ones(1),), {}), "an argument of type Tensor has no place"),
        ((aten.add.Tensor, (1j,), {}), "an argument of type complex has no place"),
    ],
)
def test_calls_with_no_place(call: tuple[Any, tuple[Any, ...], dict[str, Any]], message: str) -> None:
    """A function or an argument that could not be read back is refused when saving."""
    with pytest.raises(ArtifactError, match=message):
        graph_to_json(calling(call), {})


@pytest.mark.parametrize(
    "spec",
    [
        NodeSpec(),
        NodeSpec(weight=parse_spec("int4 group:16", symmetric=True), execution="simulated"),
        NodeSpec(weight=QuantSpec(bits=(2, 8, 3), granularity="channel", symmetric=True), execution="integer"),
        NodeSpec(inputs=(None, parse_spec("log2:5 tensor time:7", symmetric=False))),
        NodeSpec(
            inputs=(parse_spec("int8 token dynamic", symmetric=False), parse_spec("nf4 channel", symmetric=True))
        ),
        NodeSpec(weight=parse_spec("fp8-e5m2 tensor", symmetric=True), inputs=(None,)),
    ],
)
def test_specs(spec: NodeSpec) -> None:
    """Every kind of spec comes back equal, bits for each channel as a tuple, and again a second time."""
    graph = calling((aten.silu.default, (), {}))
    node = next(n for n in graph.graph.nodes if n.op == "call_function")
    node.meta |= {"qpass": spec, "origin": "a.b/silu[0]", "stack": (("", "Net"), ("a.b", "Act"))}
    once = through(graph)
    for back in (once, through(once)):
        node = next(n for n in back.graph.nodes if n.op == "call_function")
        assert node.meta == {"qpass": spec, "origin": "a.b/silu[0]", "stack": (("", "Net"), ("a.b", "Act"))}
        assert attrs.astuple(node.meta["qpass"]) == attrs.astuple(spec)


def test_a_method_call_has_no_place() -> None:
    """A graph that calls methods by name cannot be saved: their receiver could be anything."""
    graph = Graph()
    graph.output(graph.call_method("silu", (graph.placeholder("x"),)))
    with pytest.raises(ArtifactError, match="calls the method 'silu'"):
        graph_to_json(GraphModule(nn.Module(), graph), {})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "pads with 'circular'"),
        (nn.GroupNorm(1, 1), "is a GroupNorm"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(1, 1)), "is a ParametrizedLinear"),
    ],
)
def test_modules_with_no_place(module: nn.Module, message: str) -> None:
    """A module that could not be built again as it was is refused when saving, with its name."""
    root = nn.Module()
    root.add_module("inner", module)
    graph = Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    with pytest.raises(ArtifactError, match=f"'inner' {message}"):
        graph_to_json(GraphModule(root, graph), {})


class Slices(nn.Module):
    """Writes into parts of a tensor, as FreeU does."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Some of it twice as large, some of it 0."""
        y = x.clone()
        y[:, :2] = y[:, :2] * 2
        y[:, 3] = t[:, None]
        y.diagonal(dim1=1, dim2=2).zero_()
        return y


def test_writes_into_slices_are_kept() -> None:
    """Traced they are functions of values, and those an artifact holds."""
    inputs = (torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0)), torch.ones(3))
    graph = trace(Slices(), inputs, dynamic=((0,), (0,)))
    assert "scatter" in graph.code
    assert torch.equal(through(graph)(*inputs), Slices()(*inputs))
