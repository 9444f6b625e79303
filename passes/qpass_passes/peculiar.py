"""Layers that a report should mention: dead, constant, one channel wide, called twice, or fed with integers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qpass.activations import Samples
from qpass.graph.nodes import aten
from qpass.slots import layer, spec_of, weight_of
from qpass.slots import slots as slots_of

ROWS = 8  # calibration rows that are looked at
_MOVING = (
    aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.view.default, aten.reshape.default,
    aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.transpose.int, aten.permute.default,
)  # fmt: skip


@torch.no_grad()
def peculiar(graph: GraphModule, samples: Samples, device: torch.device) -> dict[str, dict[str, str]]:
    """What is unusual about each quantized layer, as a note; nothing where nothing is."""
    few = samples.take(torch.linspace(0, len(samples) - 1, min(ROWS, len(samples))).long())
    look = _Look(graph)
    look.run(*next(few.batches(ROWS, device)))
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    found: dict[str, list[str]] = {}
    for slot in slots_of(graph):
        if slot.index >= 0:
            continue
        name, weight = str(slot.node.target), weight_of(graph, slot)
        facts = {
            "all its weights are 0": not weight.any(),
            "all its weights are equal": bool(weight.any())
            and weight.numel() > 1
            and bool(weight.min() == weight.max()),
            "one channel wide": 1 in weight.shape[:2],
            f"called {calls[name]} times: rounded once, for the first": calls[name] > 1,
            "its input never changes": slot.node in look.constant,
            "fed with integers": slot.node in look.integers,
        }
        if told := [fact for fact, holds in facts.items() if holds]:
            found[name] = told
    return {"peculiar": {name: "; ".join(told) for name, told in found.items()}} if found else {}


class _Look(Interpreter):
    """Runs a graph and notes which quantized layers read a constant, or what was an integer."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.graph_module = graph
        self.whole: set[Node] = set()
        self.constant: set[Node] = set()
        self.integers: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and not value.is_floating_point():
            self.whole.add(n)
        if spec_of(n) is not None and layer(self.graph_module, n) is not None:
            (source,) = n.all_input_nodes
            given = self.env[source]
            if given.numel() > 1 and given.amin() == given.amax():
                self.constant.add(n)
            if _origin(source) in self.whole:
                self.integers.add(n)
        return value


def _origin(node: Node) -> Node:
    """Where a tensor's values come from, before they were cast and reshaped."""
    while node.target in _MOVING:
        node = node.all_input_nodes[0]
    return node
