"""The temporal information block is what depends on the timestep alone, rounded over the timesteps there are."""

from __future__ import annotations

import attrs
import torch
from learned import prepared
from qpass_passes.brecq import Brecq
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.repq import RepQ
from qpass_passes.simulate import Simulate
from qpass_passes.tfmq import NAME, Tfmq, distinct, temporal

from qpass.activations import Samples, run_recording
from qpass.manager import PassManager
from qpass.sampling import Sampling
from qpass.slots import layer, read_params, slots, spec_of

FEW = {"iterations": 30, "batch": 4, "rows": 32}


def test_the_block_of_a_unet(context):
    """The time embedding's two layers and each residual block's projection of it, and no other layer."""
    graph = prepared(context)
    names = {str(node.target) for node in temporal(graph) if layer(graph, node) is not None}
    every = {name for name, _ in context.reference.named_modules()}
    assert names == {n for n in every if n.startswith("time_embedding.linear") or n.endswith("time_emb_proj")}


def test_its_values_do_not_depend_on_the_image(context):
    """Other images at the same timesteps give every tensor of the block bit for bit."""
    graph = prepared(context)
    nodes = sorted(temporal(graph), key=lambda node: node.name)
    x, t, *rest = context.model.example(3)
    one = run_recording(graph, nodes, (x, t, *rest))
    other = run_recording(graph, nodes, (x + 1, t, *rest))
    assert all(torch.equal(one[node], other[node]) for node in nodes)


def test_distinct_rows():
    """One row of each, the first, in order; inputs that the block does not read make no difference."""
    samples = Samples(inputs=(torch.arange(6.0).reshape(6, 1), torch.tensor([7, 7, 3, 7, 3, 5])))
    assert distinct(samples, [1]).inputs[0].flatten().tolist() == [0, 2, 5]
    assert len(distinct(samples, [0, 1])) == 6


def test_it_learns_the_block_and_leaves_the_rest(context):
    """Codes for its layers alone; one scale per timestep; `brecq` after it takes the others."""
    graph = prepared(context)
    block = {str(node.target) for node in temporal(graph) if layer(graph, node) is not None}
    result = Tfmq(**FEW).run(graph, context)
    steps = 4  # of the calibration set
    assert (result.notes["timesteps"], result.notes["distinct inputs"]) == (steps, steps)
    assert list(result.notes["blocks"]) == [NAME]
    loss = result.notes["blocks"][NAME]["loss"]
    assert loss[1] <= loss[0]
    coded = {name.removesuffix(".weight_q.codes") for name, _ in graph.named_buffers() if name.endswith("codes")}
    assert coded == block
    for slot in slots(graph):
        if slot.index >= 0:
            assert slot.spec.time_groups == steps
            assert len(graph.get_buffer(f"{slot.home}.scale")) == steps
    kept = {name: tensor.clone() for name, tensor in graph.named_buffers() if name.endswith("codes")}
    run = PassManager([Brecq(**FEW), Simulate()]).run(graph, context)
    assert all(torch.equal(run.graph.get_buffer(name), tensor) for name, tensor in kept.items())
    assert torch.isfinite(run.graph(*context.model.example(2))).all()


def test_other_inputs_on_request_only(context):
    """Without `every_input`, scales per timestep stay within the block."""
    graph = prepared(context)
    Tfmq(**FEW, every_input=False).run(graph, context)
    inside = temporal(graph)
    for node in graph.graph.nodes:
        if spec_of(node):
            assert {one.time_groups for one in spec_of(node).inputs} == {4 if node in inside else 1}


def test_rows_are_a_limit(context):
    """Of the distinct inputs no more than `rows` are learned from; two timesteps, or one, are enough."""
    result = Tfmq(**{**FEW, "rows": 4}).run(prepared(context, weight="int4 channel"), context)
    assert result.notes["distinct inputs"] == 4
    for steps in (1, 2):
        few = attrs.evolve(
            context, sampling=Sampling(steps=steps, batch=4), calibration=UniformSteps(samples=4, steps=steps)
        )
        result = Tfmq(**FEW).run(prepared(few), few)
        assert result.notes["distinct inputs"] == steps
        assert result.notes["blocks"]


def test_inputs_that_were_fitted_keep_their_scale(context):
    """`repq` before it leaves one scale for all timesteps; the note counts the others."""
    graph = RepQ().run(prepared(context), context).graph
    result = Tfmq(**FEW).run(graph, context)
    counts = 0
    for slot in slots(graph):
        if slot.index >= 0:
            scale = read_params(graph, slot).tensors["scale"]
            assert len(scale) == slot.spec.time_groups
            counts += len(scale) == 4
    assert 0 < counts < sum(slot.index >= 0 for slot in slots(graph))
    assert result.notes["inputs with a scale per timestep"] == counts
