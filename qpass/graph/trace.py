"""Traces a module into a readable graph: a plain `torch.fx.GraphModule` called as `denoise(x, t, *cond)`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.fx import GraphModule

from qpass.errors import TraceError
from qpass.graph.attention import settle_attention
from qpass.graph.clean import drop_noise, free_devices, free_layouts, is_foreign, is_mutating, plain
from qpass.graph.failure import tracing, unsupported
from qpass.graph.lift import lift_modules
from qpass.graph.names import write_names

Dims = tuple[tuple[int, ...], ...]


def trace(
    module: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    call: Callable[..., Any] | None = None,
    dynamic: Dims | None = None,
) -> GraphModule:
    """The module as a graph of modules and aten calls, in eval mode, on a copy of its weights.

    `example` is `(x, t, *cond)`; `call(module, *example)` adapts a module with another signature. `dynamic`
    gives the dimensions of each input that may change (default: dim 0 of all). Every compute node has an
    origin and a stack (see `qpass.graph.names`), and no other meta.
    """
    example = tuple(example)
    for position, value in enumerate(example):
        if not isinstance(value, torch.Tensor):
            raise TraceError(f"input {position} of the example is a {type(value).__name__}; it must be a tensor")
    dims = tuple((0,) if v.ndim else () for v in example) if dynamic is None else dynamic
    if len(dims) != len(example):
        raise TraceError(f"dynamic has {len(dims)} entries, the example has {len(example)} inputs; one each")
    twin = copy.deepcopy(module).eval().requires_grad_(False)
    example = tuple(_pair(v) if 0 in d and v.shape[0] == 1 else v for v, d in zip(example, dims, strict=True))
    _speak(twin, call)
    shapes = (tuple(dict.fromkeys(entry, Dim.DYNAMIC) for entry in dims),)
    with tracing(twin), torch.no_grad():
        program = torch.export.export(twin, example, strict=False, dynamic_shapes=shapes)
        if any(is_mutating(node) for node in program.graph.nodes):
            program = program.run_decompositions({})  # writes in place become values; composite ops stay
        exported = program.module(check_guards=False)
    written = (
        *program.graph_signature.buffers_to_mutate.values(),
        *program.graph_signature.user_inputs_to_mutate.values(),
    )
    if written:
        raise TraceError(f"cannot trace {type(twin).__name__}: it writes to {', '.join(written)}")
    return _readable(exported, twin, len(example))


def _readable(exported: GraphModule, twin: nn.Module, inputs: int) -> GraphModule:
    graph = plain(exported, ["x", "t", *(f"cond_{k}" for k in range(inputs))][:inputs])
    gm = GraphModule(exported, graph)
    drop_noise(graph)
    free_devices(graph)
    free_layouts(graph)
    lift_modules(graph, gm, twin)
    settle_attention(graph)
    for node in graph.nodes:
        if is_foreign(node):
            raise unsupported(node, twin)
    write_names(graph)
    graph.lint()
    traced = GraphModule(gm, graph, class_name=type(twin).__name__)
    for module in traced.modules():
        module._non_persistent_buffers_set.clear()  # the graph cannot make them again: they are saved
    return traced.eval()


def _speak(twin: nn.Module, call: Callable[..., Any] | None) -> None:
    """Gives the copy a `forward(x, t, *cond)` that returns one tensor; names stay its own."""
    inner = twin.forward

    def forward(*args: torch.Tensor) -> torch.Tensor:
        twin.forward = inner
        try:
            result = inner(*args) if call is None else call(twin, *args)
        finally:
            twin.forward = forward
        tensors = [v for v in torch.utils._pytree.tree_leaves(result) if isinstance(v, torch.Tensor)]
        if len(tensors) != 1:
            raise TraceError(
                f"{type(twin).__name__} returns {len(tensors)} tensors and not one; pick the one with `call`"
            )
        return tensors[0]

    twin.forward = forward


def _pair(value: torch.Tensor) -> torch.Tensor:
    """A batch of one, twice: export takes a dimension of size one for a constant."""
    return torch.cat([value, value])
