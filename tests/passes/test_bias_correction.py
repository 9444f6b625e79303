"""After correction, every layer of the realised graph has the original's mean on the calibration rows."""

from __future__ import annotations

import copy

import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.bias_correction import BiasCorrection
from qpass_passes.brecq import Brecq
from qpass_passes.simulate import Simulate

from qpass.activations import run_recording
from qpass.errors import RecipeError
from qpass.manager import PassManager
from qpass.recipe import check_passes
from qpass.slots import layer


def realised(context, *passes):
    step = Assign(weight="int4 channel", input="int4 tensor")
    return PassManager([step, *passes, Simulate()]).run(copy.deepcopy(context.reference), context).graph


def means(graph, samples):
    """The mean output of every layer by channel."""
    nodes = [node for node in graph.graph.nodes if layer(graph, node) is not None]
    seen = run_recording(graph, nodes, samples.inputs)
    axis = {node: -1 if isinstance(layer(graph, node), torch.nn.Linear) else 1 for node in nodes}
    return {str(node.target): value.movedim(axis[node], 0).flatten(1).mean(1) for node, value in seen.items()}


@pytest.mark.parametrize("before", [(), (Brecq(iterations=20, batch=8),)], ids=["nearest", "brecq"])
def test_means_are_the_originals(context, before):
    """On the rows that were averaged over, but for values that take another code; without it they are not."""
    samples = context.get(context.calibration, context.reference)
    wanted = means(context.reference, samples)
    apart = {}
    for name, passes in (("plain", before), ("corrected", (*before, BiasCorrection()))):
        found = means(realised(context, *passes), samples)
        apart[name] = sum(float((found[k] - wanted[k]).abs().mean()) for k in wanted)
    assert apart["corrected"] < 0.1 * apart["plain"]


def test_it_comes_last(context):
    """What learns from the graph as its teacher cannot follow; it does not run twice."""
    for wrong in ([Assign(), BiasCorrection(), Brecq()], [Assign(), BiasCorrection(), BiasCorrection()]):
        with pytest.raises(RecipeError, match="cannot come after 'bias-correction'"):
            check_passes(wrong, context.catalog)


def test_the_teacher_is_not_touched(context):
    """Its biases stay."""
    before = {name: tensor.clone() for name, tensor in context.reference.named_parameters()}
    realised(context, BiasCorrection())
    assert all(torch.equal(before[name], tensor) for name, tensor in context.reference.named_parameters())
