"""What each quantizer does to the model's output when it is the only one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from qpass.activations import Samples
from qpass.graph.blocks import block_of
from qpass.graph.nodes import compute_nodes
from qpass.manager import PassContext
from qpass.quantizer import Quantizer
from qpass.slots import Slot
from qpass_passes.fitting import fit_inputs, fit_weights
from qpass_passes.reconstruction.rows import runs
from qpass_passes.reconstruction.soft import SoftBlock, SoftInput, SoftLayer

BATCH = 32  # rows that the model is called with at once


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

    def outputs() -> list[list[Tensor]]:
        found = []
        for index in runs(len(samples), BATCH):
            part = samples.take(index)
            inputs = [part.inputs[places[node]].to(ctx.device) for node in whole.inputs]
            found.append([one.double() for one in model(part.t.to(ctx.device), *inputs)])
        return found

    quantizers: dict[tuple[str, ...], SoftLayer | SoftInput] = {
        _homes([one.slot]): one for one in model.layers.values()
    }
    quantizers |= {_homes(one.slots): one for one in model.inputs}
    for one in quantizers.values():
        one.active = False
    exact = outputs()
    silence = sum(float(one.square().sum()) for batch in exact for one in batch) or 1.0
    errors: dict[tuple[str, ...], float] = {}
    with ctx.progress.task("each quantizer alone", len(quantizers)) as task:
        for homes, one in quantizers.items():
            one.active = True
            errors[homes] = _apart(outputs(), exact) / silence
            one.active = False
            task.advance()
    return errors


def _homes(slots: Sequence[Slot]) -> tuple[str, ...]:
    return tuple(slot.home for slot in slots)


def _apart(ours: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]]) -> float:
    pairs = ((a, b) for some, others in zip(ours, theirs, strict=True) for a, b in zip(some, others, strict=True))
    return sum(float((a - b).square().sum()) for a, b in pairs)
