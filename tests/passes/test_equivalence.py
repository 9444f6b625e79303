"""Factors move from inputs into weights: the model stays what it was, and rounding takes them in."""

from __future__ import annotations

import copy

import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.equivalence.channels import ChannelRanges
from qpass_passes.equivalence.rescale import after_norm, rescale, takes_offset
from qpass_passes.equivalence.ties import ties
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.repq import RepQ, layerwise
from qpass_passes.simulate import Simulate
from qpass_passes.smooth import Smooth
from torch import nn

from qpass.activations import run_recording
from qpass.artifact.folder import Artifact, load_artifact, save
from qpass.errors import PreconditionError
from qpass.graph import trace
from qpass.kernels import reference
from qpass.manager import PassManager
from qpass.slots import find
from qpass.spec import QuantSpec


def assigned(graph, **options):
    """A copy with every layer's spec."""
    graph = copy.deepcopy(graph)
    Assign(**{"weight": "int4 channel", "input": "int8 tensor", **options}).run(graph, None)
    return graph


def distance(graph, other, inputs):
    """The largest difference of two outputs, relative to the largest value."""
    with torch.no_grad():
        expected, found = graph(*inputs), other(*inputs)
    return float((found - expected).abs().max() / expected.abs().max())


class Transformer(nn.Module):
    """LayerNorm into q, k, v; their mean into a feed-forward with a norm that two readers share."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(12), nn.LayerNorm(12)
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.conv, self.point = nn.Conv1d(12, 12, 3, padding=1), nn.Conv1d(12, 12, 1)
        for norm in (self.norm, self.last):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x, t):
        y = self.norm(x)
        z = x + torch.sigmoid(self.q(y)) * self.k(y) + self.v(y) + t.reshape(-1, 1, 1)
        w = self.last(z)
        z = w + self.down(torch.relu(self.up(w)))
        z = z.transpose(1, 2)
        return (self.conv(z) + self.point(z)).transpose(1, 2)


@pytest.fixture(scope="module")
def block():
    """That model, traced, and inputs whose channels are very unlike."""
    torch.manual_seed(0)
    x = torch.randn(5, 7, 12) * torch.logspace(-1, 1, 12) + 0.3
    inputs = (x, torch.rand(5))
    return trace(Transformer().eval(), inputs), inputs


def test_readers_of_one_tensor_are_tied(block):
    """q, k and v are one; both convolutions another; each knows whether it follows a norm and pads."""
    graph = assigned(block[0], edge_weight="int4 channel")
    found = {tie.layers: tie for tie in ties(graph)}
    assert set(found) == {("q", "k", "v"), ("up",), ("down",), ("conv", "point")}
    assert [layers for layers, tie in found.items() if after_norm(graph, tie)] == [("q", "k", "v"), ("up",)]
    assert [layers for layers, tie in found.items() if not takes_offset(graph, tie)] == [("conv", "point")]
    assert {tie.layers for tie in ties(graph, ("q", "d*"))} == {("q",), ("down",)}


def test_a_layer_with_a_call_left_in_float_is_left_alone(block):
    """What is not rounded keeps its weight, and the others keep their distance from its norm."""
    graph = assigned(block[0], keep=("k",))
    found = {tie.layers: tie for tie in ties(graph)}
    assert ("q", "v") in found
    assert rescale(graph, found["q", "v"], torch.rand(12) + 0.5) == "quantizer"
    assert distance(block[0], graph, block[1]) < 1e-6


@pytest.mark.parametrize(
    ("layers", "where"), [(("q", "k", "v"), "norm"), (("up",), "quantizer"), (("down",), "quantizer")]
)
@pytest.mark.parametrize("offset", [False, True])
def test_any_factor_leaves_the_model_as_it_was(block, layers, where, offset):
    """Into the norm where nobody else reads it (`last` feeds a sum as well), else before the quantizer."""
    graph = assigned(block[0])
    tie = next(tie for tie in ties(graph) if tie.layers == layers)
    width = 24 if layers == ("down",) else 12
    factor = torch.logspace(-2, 2, width)[torch.randperm(width, generator=torch.Generator().manual_seed(1))]
    assert rescale(graph, tie, factor, torch.linspace(-1, 1, width) if offset else None) == where
    assert sum(n.target is reference.rescale for n in graph.graph.nodes) == (where == "quantizer")
    graph.graph.lint()
    assert distance(block[0], graph, block[1]) < 2e-5
    before, after = block[0].get_submodule(layers[0]).weight, graph.get_submodule(layers[0]).weight
    assert torch.equal(after, before * factor)


class Moved(nn.Module):
    """A norm over channels whose output reaches a linear layer with its axes in another order."""

    def __init__(self, *order: int, shape: tuple[int, ...] = (), plain: bool = False) -> None:
        super().__init__()
        self.order, self.shape, self.plain = order, shape, plain
        self.norm = nn.LayerNorm(8) if plain else nn.GroupNorm(2, 8)
        self.read = nn.Conv2d(8, 8, 1) if plain else nn.Linear(8, 8)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x, t):
        h = self.norm(x.reshape(x.shape[0], *self.shape) + t.reshape(t.shape[0], *[1] * len(self.shape)))
        return self.read(h.transpose(*self.order) if len(self.order) == 2 else h.permute(*self.order))


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (Moved(1, 2, shape=(8, 64)), "norm"),
        (Moved(-1, 1, shape=(8, 64)), "norm"),
        (Moved(1, 2, shape=(8, 8, 8)), "quantizer"),
        (Moved(-1, -2, shape=(8, 8, 8)), "quantizer"),
        (Moved(1, 3, shape=(8, 8, 8)), "norm"),
        (Moved(0, 2, 3, 1, shape=(8, 8, 8)), "norm"),
        (Moved(0, 3, 2, 1, shape=(8, 8, 8)), "norm"),
        (Moved(0, 2, 1, 3, shape=(8, 8, 8)), "quantizer"),
        (Moved(1, 2, shape=(8, 8, 8), plain=True), "quantizer"),
        (Moved(0, 3, 1, 2, shape=(8, 8, 8), plain=True), "norm"),
    ],
    ids=lambda given: str(getattr(given, "order", given)),
)
def test_a_norm_takes_the_factor_where_its_channels_are_the_layers(model, where):
    """However many axes there are and wherever they go; where another axis becomes the channels it does not, and
    either way the model is what it was."""
    torch.manual_seed(0)
    inputs = (torch.randn(5, 512), torch.rand(5))
    graph = trace(model.eval(), inputs)
    done = assigned(graph, edge_weight="int4 channel")
    (tie,) = ties(done)
    assert rescale(done, tie, torch.logspace(-1, 1, 8), None) == where
    assert distance(graph, done, inputs) < 2e-5


def test_powers_of_two_in_the_quantizer_change_no_bit(block):
    """Multiplying by them is exact, twice as well: two factors in a row are one node."""
    graph = assigned(block[0])
    for exponents in (torch.arange(-6, 6), torch.arange(12)):
        tie = next(tie for tie in ties(graph) if tie.layers == ("up",))
        rescale(graph, tie, torch.exp2(exponents.float()))
        assert sum(n.target is reference.rescale for n in graph.graph.nodes) == 1
    assert distance(block[0], graph, block[1]) == 0
    assert find(graph, "up.rescaled.inverse").tolist() == [2.0 ** (6 - 2 * i) for i in range(12)]


def test_offsets_add_up(block):
    """x / 2 + 1, then / 4 + 3, is x / 8 + 1/4 + 3."""
    graph = assigned(block[0])
    for factor, offset in ((2.0, 1.0), (4.0, 3.0)):
        tie = next(tie for tie in ties(graph) if tie.layers == ("up",))
        rescale(graph, tie, torch.full((12,), factor), torch.full((12,), offset))
    assert find(graph, "up.rescaled.inverse").tolist() == [0.125] * 12
    assert find(graph, "up.rescaled.offset").tolist() == [3.25] * 12
    assert distance(block[0], graph, block[1]) < 1e-6


@pytest.mark.parametrize("step", [Smooth(), Smooth(over="spearman"), RepQ(), RepQ(where="everywhere")], ids=str)
def test_a_unet_stays_what_it_was(context, step):
    """On the tiny UNet, whose attention reads a group norm through a transpose: below 1e-5; the note says where."""
    graph = copy.deepcopy(context.reference)
    run = PassManager([Assign(weight="int4 channel", input="int6 tensor"), step]).run(graph, context)
    assert distance(context.reference, run.graph, context.model.example(3)) < 1e-5
    into = run.records[-1].notes["into"]
    assert into["norm"] >= 2
    assert step == RepQ() or into["quantizer"] > into["norm"]


@pytest.mark.parametrize("over", ["max", "spearman"])
def test_a_realised_graph_has_taken_the_factors_in(context, over):
    """No `rescale` is left, and quantizers give what `x / c` is within half a step, on all that was calibrated on."""
    graph = copy.deepcopy(context.reference)
    assign = Assign(weight="int8 channel", input="int8 tensor time:2", softmax="log2:4 tensor")
    done = PassManager([assign, Smooth(over=over), Simulate(input=AbsMax())]).run(graph, context).graph
    assert not [node for node in done.graph.nodes if node.target is reference.rescale]
    samples = context.get(context.calibration, context.reference)
    assert distance(context.reference, done, samples.inputs) < 0.2
    moved = [node for node in done.graph.nodes if "inverse" in node.kwargs]
    assert len(moved) > 4
    node = moved[0]  # what comes before it is hardly rounded, so its range is still the one that was fitted
    seen = run_recording(done, [node, node.args[0]], samples.inputs)
    inverse, scale = (find(done, str(part.target)) for part in (node.kwargs["inverse"], node.args[1]))
    expected = seen[node.args[0]] * inverse  # channels are last: the time embedding comes first
    assert float((seen[node] - expected).abs().max()) <= 0.55 * float(scale.max())
    assert float((seen[node] - seen[node.args[0]]).abs().max()) > 10 * float(scale.max())


def test_artifacts_keep_it(context, tmp_path):
    """Saved and loaded between two passes and after the last, the graph gives the same bits."""
    graph = copy.deepcopy(context.reference)
    inputs = context.model.example(3)
    for number, passes in enumerate(
        ([Assign(input="int6 tensor"), Smooth(), RepQ(where="everywhere")], [Simulate()])
    ):
        graph = PassManager(passes).run(graph, context).graph
        save(Artifact(graph=graph), tmp_path / str(number), context.catalog)
        loaded = load_artifact(tmp_path / str(number), context.catalog)
        assert distance(graph, loaded.graph, inputs) == 0


@pytest.mark.parametrize("bits", [6, 8])
def test_planted_outliers_cost_less(planted, bits):
    """With weights hardly rounded, either pass brings the error of a layer's output below half."""
    errors = {
        name: planted("linear", f"int8 channel/int{bits} tensor", *passes)
        for name, passes in {
            "plain": [], "max": [Smooth()], "spearman": [Smooth(over="spearman")], "repq": [RepQ(where="everywhere")],
        }.items()
    }  # fmt: skip
    assert max(errors["max"], errors["spearman"], errors["repq"]) < 0.5 * errors["plain"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_repq_rounds_like_channels_of_their_own(symmetric):
    """One scale for the moved tensor is a scale for each channel of the tensor, up to a clipped code at the ends."""
    spec = QuantSpec(bits=6, symmetric=symmetric)
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 8, generator=source) * torch.logspace(-2, 2, 8) + torch.linspace(-3, 3, 8)
    low, high = x.amin((0, 1)), x.amax((0, 1))
    factor, offset, params = layerwise(low, high, spec, shift=not symmetric)
    assert (offset is None) == symmetric
    scale, zero = (params.tensors[part][0, 0] for part in ("scale", "zero"))
    bottom, top = reference.levels(6, symmetric)
    moved = x / factor + (0 if offset is None else offset)
    got = reference.encode_affine(moved, scale, zero, bottom, top)
    alone = reference.affine_from_range(low, high, 6, symmetric)
    expected = reference.encode_affine(x, *alone, bottom, top)
    if symmetric:
        assert (got - expected).abs().max() <= 1
    else:
        # zero points of one-sided channels are past the ends: the codes agree all the same
        assert torch.equal(got, (expected - alone[1] + zero + (alone[1] - zero)).clamp(bottom, top))


def test_channel_ranges_are_brute_forces(context):
    """By timestep and channel, against recorded tensors."""
    graph = assigned(context.reference)
    samples = context.get(context.calibration, context.reference)
    found = context.get(ChannelRanges(calibration=context.calibration, rows=len(samples)), graph)
    tie = next(tie for tie in ties(graph) if len(tie.layers) == 3)
    value = run_recording(graph, list(tie.tensors), samples.inputs)[tie.tensors[0]]
    for place, t in enumerate(found.times):
        rows = value[samples.t == t].flatten(0, 1)
        low, high = found.of(tie)
        assert torch.allclose(low[place], rows.amin(0), atol=1e-5)
        assert torch.allclose(high[place], rows.amax(0), atol=1e-5)


def test_what_is_fitted_is_not_changed(context):
    """After a pass that fits, both refuse and name the slot and the way out."""
    from qpass_passes.brecq import Brecq

    graph = copy.deepcopy(context.reference)
    for step in (Smooth(), RepQ()):
        with pytest.raises(PreconditionError, match=r"has been fitted already.*right after 'assign'"):
            PassManager([Assign(), Brecq(iterations=1, batch=4), step]).run(copy.deepcopy(graph), context)


@pytest.mark.parametrize(
    "step", [Smooth(layers=("mid_blok*",)), RepQ(layers=("mid_blok*",))], ids=["smooth", "repq"]
)
def test_a_glob_that_matches_nothing(context, step):
    """One error that names it."""
    with pytest.raises(PreconditionError, match="'mid_blok\\*' matches no layer"):
        PassManager([Assign(), step]).run(copy.deepcopy(context.reference), context)
