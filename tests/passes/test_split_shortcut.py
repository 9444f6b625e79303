"""A layer that reads a concatenation becomes one for each part: equal in full precision, with scales of its own."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from qpass_passes.adaround import AdaRound
from qpass_passes.assign import Assign
from qpass_passes.daq import Daq
from qpass_passes.simulate import Simulate
from qpass_passes.split_shortcut import SplitShortcut
from qpass_passes.tcr import Tcr
from torch import nn

from qpass.errors import PreconditionError, RecipeError
from qpass.graph import trace
from qpass.manager import PassManager
from qpass.recipe import check_passes
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


class Joined(nn.Module):
    """Two layers' outputs, side by side along one axis, into a third."""

    def __init__(self, kind, axis):
        super().__init__()
        made = nn.Linear if kind == "linear" else (lambda a, b: nn.Conv3d(a, b, 1))
        self.a, self.b, self.axis = made(4, 4), made(4, 4), axis
        channels = 4 if kind == "linear" else 1
        self.read = made(8 if axis % 5 == channels else 4, 4)

    def forward(self, x, t):
        return self.read(torch.cat([self.a(x), self.b(x) * (1 + t.reshape(-1, 1, 1, 1, 1))], self.axis))


@pytest.mark.parametrize(
    ("kind", "axis", "split"),
    [
        ("linear", 4, ["read"]), ("linear", -1, ["read"]), ("linear", 2, []), ("linear", -2, []),
        ("conv", 1, ["read"]), ("conv", -4, ["read"]), ("conv", -3, []), ("conv", 2, []),
    ],
)  # fmt: skip
def test_only_channels_are_split(context, kind, axis, split):
    """In tensors of five axes, those of a linear layer are the last and those of a convolution the second."""
    done, notes, x = joined(context, Joined(kind, axis), torch.randn(2, 4, 4, 4, 4))
    assert notes["split"] == split
    assert torch.allclose(done(x, torch.ones(2)), notes["expected"], atol=1e-5)


class Unlike(nn.Module):
    """A layer that reads two concatenations, whose parts are of unlike widths or of like ones."""

    def __init__(self, other):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, other)
        self.read = nn.Linear(8 + other, 8)

    def forward(self, x, t):
        a, b = self.a(x) * (1 + t.reshape(-1, 1)), self.b(x)
        return self.read(torch.cat([a, b], 1)) + self.read(torch.cat([b, a], 1))


@pytest.mark.parametrize(("other", "split"), [(4, []), (8, ["read", "read#2"])])
def test_a_layer_that_reads_two_concatenations(context, other, split):
    """Where their parts are of unlike widths it is left alone, as one set of columns does not serve both."""
    done, notes, x = joined(context, Unlike(other), torch.randn(2, 8))
    assert notes["split"] == split
    assert torch.allclose(done(x, torch.ones(2)), notes["expected"], atol=1e-5)


def joined(context, model, x):
    """The model's graph after the pass, its notes with what the model gives, and what it was given."""
    torch.manual_seed(0)
    graph = trace(model.eval(), (x, torch.ones(2)))
    expected = graph(x, torch.ones(2)).detach()

    class Example:
        def example(self):
            return x, torch.ones(2)

    ctx = attrs.evolve(context, model=Example(), reference=graph)
    graph = Assign(weight="int4 channel", edge_weight="int4 channel").run(copy.deepcopy(graph), ctx).graph
    result = SplitShortcut().run(graph, ctx)
    return result.graph, {**result.notes, "expected": expected}, x


def test_after_simulate_it_is_too_late(catalog):
    """The plan says so before anything is loaded."""
    with pytest.raises(RecipeError, match="split-shortcut"):
        check_passes([Assign(), Simulate(), SplitShortcut()], catalog)


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
