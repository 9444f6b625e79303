"""A layer that reads a concatenation becomes one for each part: equal in full precision, with scales of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from qpass_passes.adaround import AdaRound
from qpass_passes.assign import Assign
from qpass_passes.daq import Daq
from qpass_passes.simulate import Simulate
from qpass_passes.split_shortcut import SplitShortcut
from qpass_passes.tcr import Tcr

from qpass.errors import PreconditionError
from qpass.manager import PassManager
from qpass.slots import read_params, slots


def test_shortcuts_of_up_blocks_are_split(context):
    """Every shortcut that reads a concatenation, found by its node; the output is the model's but for rounding."""
    graph = copy.deepcopy(context.reference)
    reads = [
        str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" and getattr(node.args[0], "target", None) is torch.ops.aten.cat.default
    ]
    run = PassManager([Assign(weight="int4 channel", input="int6 tensor"), SplitShortcut()]).run(graph, context)
    assert run.records[-1].notes["split"] == reads
    assert reads
    assert all(name.endswith("conv_shortcut") for name in reads)
    inputs = context.model.example(3)
    with torch.no_grad():
        expected, found = context.reference(*inputs), run.graph(*inputs)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    names = {slot.home for slot in slots(run.graph)}
    for name in reads:
        assert {f"{name}_part{part}.{what}" for part in (0, 1) for what in ("weight_q", "input0_q")} <= names
        assert f"{name}.weight_q" not in names
    assert not set(reads) & {name for name, _ in run.graph.named_modules()}


def test_it_lowers_the_error_of_unlike_halves(context):
    """With the skip connections a hundred times larger than what they meet, one scale for both loses the small half."""
    errors = []
    torch.manual_seed(0)
    for split in (False, True):
        graph = copy.deepcopy(context.reference)
        graph = Assign(weight="int8 channel", input="int4 tensor", attention="float").run(graph, context).graph
        node = next(
            n for n in graph.graph.nodes
            if n.op == "call_module" and getattr(n.args[0], "target", None) is torch.ops.aten.cat.default
        )  # fmt: skip
        for other in graph.graph.nodes:  # this layer alone is rounded
            if other is not node:
                other.meta.pop("qpass", None)
        small, large = node.args[0].args[0]
        with graph.graph.inserting_before(node.args[0]):
            scaled = graph.graph.call_function(torch.ops.aten.mul.Tensor, (large, 100.0))
        scaled.meta = {"origin": "scaled", "stack": ()}
        node.args[0].args = ([small, scaled], 1)
        weight = graph.get_submodule(node.target).weight
        weight.data[:, -weight.shape[1] // 2 :] /= 100
        plain = copy.deepcopy(graph)
        if split:
            graph = SplitShortcut().run(graph, context).graph
        graph = Simulate(rows=32).run(graph, context).graph
        inputs = context.get(context.calibration, graph).inputs
        with torch.no_grad():
            errors.append(float((graph(*inputs) - plain(*inputs)).norm()))
    assert errors[1] < 0.5 * errors[0]


def test_a_model_without_any_is_left_alone(catalog):
    """A DiT has no skip connections: nothing changes, and the note says so."""
    from qpass_models.zoo import Cifar10DiT
    from qpass_passes.calibration.uniform_steps import UniformSteps

    from qpass.graph import trace
    from qpass.manager import PassContext
    from qpass.sampling import Sampling

    adapter = Cifar10DiT()
    graph = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
    context = PassContext(
        model=adapter, reference=graph, sampling=Sampling(), calibration=UniformSteps(), catalog=catalog
    )
    graph = Assign().run(copy.deepcopy(graph), context).graph
    before = str(graph.graph)
    result = SplitShortcut().run(graph, context)
    assert (result.changed, result.notes) == (False, {"split": []})
    assert str(result.graph.graph) == before


def test_what_was_fitted_before_it_is_not_lost(context):
    """Levels that `daq` has chosen for attention stay; a layer that has been fitted or rescaled is refused."""
    graph = copy.deepcopy(context.reference)
    for name, module in graph.named_modules():
        if name.endswith("to_q"):  # attention that is sharp enough for powers to win
            module.weight.data *= 3
    steps = [Assign(softmax="int3 tensor time:4"), Daq(criterion="likelihood", bases=(1, 2)), SplitShortcut()]
    run = PassManager(steps).run(graph, context)
    chosen = [slot for slot in slots(run.graph) if slot.spec.format == "levels"]
    assert chosen
    assert all(read_params(run.graph, slot) is not None for slot in chosen)
    for step, message in (
        (
            AdaRound(iterations=2, batch=8, rows=32),
            r"split-shortcut: '.*conv_shortcut\..*' has been fitted already",
        ),
        (Tcr(search=False), r"put 'split-shortcut' before the pass .* 'tcr'"),
    ):
        with pytest.raises(PreconditionError, match=message):
            PassManager([Assign(), step, SplitShortcut()]).run(copy.deepcopy(context.reference), context)
