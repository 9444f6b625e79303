"""What each quantizer does to the model's output when it is the only one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from qpass.activations import Samples, rows_within, widest_row
from qpass.graph.blocks import block_of
from qpass.graph.nodes import compute_nodes
from qpass.manager import PassContext
from qpass.quantizer import Quantizer
from qpass.slots import Slot
from qpass_passes.fitting import fit_inputs, fit_weights
from qpass_passes.reconstruction.rows import runs
from qpass_passes.reconstruction.soft import SoftBlock, SoftInput, SoftLayer

BATCH = 32  # rows that the model is called with at once, where the memory budget has room for them


@torch.no_grad()
def errors_alone(
    graph: GraphModule, samples: Samples, ctx: PassContext, *, weight: Quantizer, input: Quantizer, fit_rows: int
) -> Mapping[tuple[str, ...], float]:
    """The squared error of the output over that of silence, for every quantizer, by the homes of its slots.

    Slots that are rounded alike on one tensor, such as the inputs of q, k and v, are one quantizer. Scales that are
    missing are fitted in a copy: the graph stays as it is.
    """
    trial = copy.deepcopy(graph, memo={id(p): p for p in graph.parameters()})
    fit_weights(trial, weight, ctx)
    fit_inputs(trial, input, fit_rows, ctx)
    whole = block_of(trial, set(compute_nodes(trial.graph)), "model")
    model = SoftBlock(trial, whole, weights=False, steps=False).to(ctx.device).eval()
    places = {node: place for place, node in enumerate(trial.graph.find_nodes(op="placeholder"))}

    quantizers: dict[tuple[str, ...], SoftLayer | SoftInput] = {
        _homes([one.slot]): one for one in model.layers.values()
    }
    quantizers |= {_homes(one.slots): one for one in model.inputs}
    for one in quantizers.values():
        one.active = False
    errors, silence = dict.fromkeys(quantizers, 0.0), 0.0
    batch = rows_within(ctx.memory_budget // 4, widest_row(graph, samples, ctx.device), BATCH)
    parts = list(runs(len(samples), batch))
    with ctx.progress.task("each quantizer alone", len(quantizers) * len(parts)) as task:
        for index in parts:
            part = samples.take(index)
            inputs = [part.inputs[places[node]].to(ctx.device) for node in whole.inputs]
            rolling = _Rolling(model.module, (part.t.to(ctx.device), *inputs))
            exact = [one.double() for one in rolling.rest(0)]
            silence += sum(float(one.square().sum()) for one in exact)
            for homes, one, place in sorted(_places(rolling.nodes, model, quantizers), key=lambda found: found[2]):
                rolling.advance(place)
                one.active = True
                errors[homes] += _apart(rolling.rest(place), exact)
                one.active = False
                task.advance()
    return {homes: error / (silence or 1.0) for homes, error in errors.items()}


class _Rolling(Interpreter):
    """A model without any rounding, run up to some node; what comes after it is run again and again from there.

    A quantizer changes nothing before the first node that it is called at, so on average half of the model need not
    run for it. In memory: the values that a later node still reads, of this batch.
    """

    def __init__(self, module: GraphModule, inputs: tuple[Tensor, ...]) -> None:
        super().__init__(module)
        self.nodes = list(module.graph.nodes)
        given = [node for node in self.nodes if node.op == "placeholder"]
        self.live: dict[Node, Any] = dict(zip(given, inputs, strict=True))
        self.place = 0

    def advance(self, place: int) -> None:
        """Run up to the node at this place, which is not run."""
        self.env = self.live
        for node in self.nodes[self.place : place]:
            self._step(node)
        self.place = max(place, self.place)

    def rest(self, place: int) -> tuple[Tensor, ...]:
        """What the model gives, run from there on."""
        self.env = dict(self.live)
        for node in self.nodes[place:-1]:
            self._step(node)
        found: tuple[Tensor, ...] = self.run_node(self.nodes[-1])
        return found

    def _step(self, node: Node) -> None:
        if node.op != "placeholder":
            self.env[node] = self.run_node(node)
        for gone in self.user_to_last_uses.get(node, ()):
            del self.env[gone]


def _places(
    nodes: Sequence[Node], model: SoftBlock, quantizers: Mapping[tuple[str, ...], SoftLayer | SoftInput]
) -> Iterator[tuple[tuple[str, ...], SoftLayer | SoftInput, int]]:
    """Each quantizer with the place of the first node that it is called at."""
    first: dict[nn.Module, int] = {}
    for place, node in enumerate(nodes):
        if node.op == "call_module":
            first.setdefault(model.module.get_submodule(str(node.target)), place)
    for homes, one in quantizers.items():
        yield homes, one, first[one]


def _homes(slots: Sequence[Slot]) -> tuple[str, ...]:
    return tuple(slot.home for slot in slots)


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return sum(float((a.double() - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
