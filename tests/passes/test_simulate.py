"""What `simulate` leaves in the graph, against rounding done by hand outside it."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.fitting import choose_rows, fit_inputs, spread_rows
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import Simulate
from torch import nn

from qpass.activations import Samples, run_recording
from qpass.errors import PreconditionError
from qpass.graph import check_devices, trace
from qpass.kernels import reference
from qpass.slots import read_params, slots, spec_of
from qpass.spec import QuantSpec
from qpass.timegroups import edges_for


def simulated(context, step=None, **options):
    graph = copy.deepcopy(context.reference)
    return (step or Simulate()).run(Assign(**options).run(graph, context).graph, context)


class Two(torch.nn.Module):
    """Two layers and a timestep, small enough to round by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, t):
        return self.c(torch.relu(self.b(self.a(x) + t.reshape(-1, 1) / 1000)))


@pytest.fixture
def two(context):
    """The two-layer model, its graph, and a context calibrated on 64 rows of known data."""
    generator = torch.Generator().manual_seed(1)
    rows = (torch.randn(64, 4, generator=generator), torch.arange(64) * 10)
    graph = trace(Two(), (torch.randn(2, 4), torch.zeros(2)))
    made = attrs.evolve(context, reference=graph)
    made.analyses._answers[made.calibration] = Samples(inputs=rows)
    return graph, made, rows


def test_by_hand(two):
    """With absmax ranges the graph's output is that of a plain loop that rounds weights and inputs itself."""
    _, context, (x, t) = two
    step = Simulate(weight=AbsMax(), input=AbsMax())
    quantized = simulated(context, step, weight="int4 channel", input="int6 tensor", attention="float",
                          edge_weight="int4 channel", edge_input="int6 tensor").graph  # fmt: skip
    model = Two()

    def rounded_weight(w):
        scale = torch.maximum(w.amax(1) / 7, -w.amin(1) / 8)[:, None]
        return (w / scale).round().clamp(-8, 7) * scale

    def rounded_input(v, low, high):
        scale = (high - low) / 63
        zero = (-low / scale).round()
        return (((v / scale).round() + zero).clamp(0, 63) - zero) * scale

    def forward(value, time, weights, ranges):
        h = rounded_input(value, *ranges[0]) @ weights[0].T + model.a.bias
        h = rounded_input(h + time.reshape(-1, 1) / 1000, *ranges[1]) @ weights[1].T + model.b.bias
        return rounded_input(torch.relu(h), *ranges[2]) @ weights[2].T + model.c.bias

    with torch.no_grad():
        first = model.a(x) + t.reshape(-1, 1) / 1000
        second = torch.relu(model.b(first))
        ranges = [(v.amin().clamp(max=0), v.amax().clamp(min=0)) for v in (x, first, second)]
        weights = [rounded_weight(layer.weight) for layer in (model.a, model.b, model.c)]
        probe = torch.randn(20, 4, generator=torch.Generator().manual_seed(2)) * 2
        times = torch.randint(0, 1000, (20,), generator=torch.Generator().manual_seed(3))
        assert torch.allclose(quantized(probe, times), forward(probe, times, weights, ranges), atol=1e-5)


def test_weights_are_their_codes(context):
    """Every quantized weight equals codes times scale exactly, and has no more levels than its bits allow."""
    graph = simulated(context, weight="int4 channel").graph
    for slot in slots(graph):
        if slot.index < 0:
            module = graph.get_submodule(str(slot.node.target))
            codes = graph.get_buffer(f"{slot.home}.codes")
            scale = read_params(graph, slot).tensors["scale"][0]
            by_hand = codes.float() * scale.reshape(-1, *[1] * (codes.dim() - 1))
            assert torch.equal(module.weight, by_hand)
            assert codes.unique().numel() <= 2**slot.spec.widest


def test_the_teacher_is_not_touched(context):
    """Rounding the graph leaves the full-precision reference's output as it was."""
    inputs = context.model.example(2)
    before = context.reference(*inputs)
    simulated(context)
    assert torch.equal(context.reference(*inputs), before)


def test_fitted_parameters_are_kept(context):
    """A scale that an earlier pass wrote is used as it is; only the rest is fitted."""
    graph = Assign().run(copy.deepcopy(context.reference), context).graph
    chosen = next(slot for slot in slots(graph) if slot.home == "conv_out.input0_q")
    from qpass.quantizer import QParams
    from qpass.slots import write_params

    mine = QParams(kind="affine", tensors={"scale": torch.full((1, 1), 0.123), "zero": torch.full((1, 1), 7.0)})
    write_params(graph, chosen, mine)
    result = Simulate().run(graph, context)
    assert read_params(result.graph, chosen).tensors["scale"].item() == pytest.approx(0.123)
    assert result.notes["fitted here"] == sum(1 for _ in slots(result.graph)) - 1


def test_one_tensor_is_rounded_once(context):
    """q, k and v read one fake-quantizer, since their inputs and specs are the same."""
    graph = simulated(context).graph
    readers = {}
    for node in graph.graph.nodes:
        if node.op == "call_module" and str(node.target).endswith((".to_q", ".to_k", ".to_v")):
            readers.setdefault(str(node.target).rpartition(".")[0], set()).add(node.args[0])
    assert readers
    assert all(len(sources) == 1 for sources in readers.values())


def test_every_node_says_simulated(context):
    """After the pass each spec's execution is "simulated": nothing claims integers."""
    graph = simulated(context).graph
    assert {spec_of(n).execution for n in graph.graph.nodes if spec_of(n)} == {"simulated"}


@pytest.mark.parametrize(
    "options",
    [
        {"input": "int8 tensor time:4"},
        {"input": "int8 token dynamic", "edge_input": "int8 tensor dynamic"},
        {"input": "int4 group:8", "weight": "int4 group:8"},
        {"input": "fp8-e4m3 tensor", "weight": "nf4 channel"},
        {"input": "int8 channel", "attention": "float"},
    ],
    ids=str,
)
def test_runs_on_another_device_and_batch(context, options):
    """Any mix of specs gives a graph that is finite, independent of batch, and at home on fake cuda."""
    graph = simulated(context, **options).graph
    inputs = context.model.example(5)
    out = graph(*inputs)
    assert torch.isfinite(out).all()
    alone = torch.cat([graph(*(part[i : i + 1] for part in inputs)) for i in range(5)])
    # another batch sums in another order, which may turn a value at a rounding edge to the next code
    assert (out - alone).norm() < 0.03 * out.norm()
    check_devices(graph, inputs, "cuda")


def test_time_groups_round_by_the_samples_own_timestep(two):
    """With time:4 on known data, each sample is rounded on the range its own group of timesteps had."""
    _, context, (x, t) = two
    step = Simulate(input=AbsMax())
    quantized = simulated(context, step, weight="float", edge_weight="float", attention="float",
                          input="int4 tensor time:4", edge_input="int4 tensor time:4").graph  # fmt: skip
    source = next(n for n in quantized.graph.nodes if n.meta.get("origin") == "a.input0_q")
    with torch.no_grad():
        value = run_recording(quantized, [source], (x, t))[source]
    for g in range(4):  # 64 timesteps, sixteen to a group
        rows = slice(16 * g, 16 * g + 16)
        low, high = x[rows].amin().clamp(max=0), x[rows].amax().clamp(min=0)
        scale = (high - low) / 15
        zero = (-low / scale).round()
        by_hand = (((x[rows] / scale).round() + zero).clamp(0, 15) - zero) * scale
        assert torch.allclose(value[rows], by_hand, atol=1e-6)
    edges = quantized.get_buffer("time_groups.edges")
    assert edges.tolist() == [155.0, 315.0, 475.0]
    assert reference.time_group(torch.tensor([154, 155]), edges).tolist() == [0, 1]


def test_more_groups_than_timesteps_is_refused(context):
    """time:G beyond the timesteps that calibration saw is an error with a way out."""
    with pytest.raises(PreconditionError, match="5 time groups, but calibration saw only 4"):
        simulated(context, input="int8 tensor time:5")


def test_rows_are_chosen_by_seed():
    """The same seed chooses the same rows, in order and without repetition."""
    samples = Samples(inputs=(torch.arange(50.0), torch.arange(50)))
    one, other = choose_rows(samples, 20, 3), choose_rows(samples, 20, 3)
    assert torch.equal(one.t, other.t)
    assert one.t.tolist() == sorted(set(one.t.tolist()))
    assert not torch.equal(one.t, choose_rows(samples, 20, 4).t)
    assert len(choose_rows(samples, 500, 0)) == 50


def test_rows_to_fit_on_are_spread_over_the_timesteps():
    """In order and without repetition, two to four from each where drawn anywhere some would have none; where the rows
    of a timestep are a group there are eight of each, or all."""
    t = torch.arange(100).flip(0).repeat_interleave(11)[10:]  # the first timestep has a single row
    samples = Samples(inputs=(torch.arange(1090.0), t))
    edges = edges_for(QuantSpec(time_groups=100), t)
    plain, fine = spread_rows(samples, 256, 0), spread_rows(samples, 256, 0, [None, edges])
    for found in (plain, fine):
        assert found.inputs[0].diff().min() > 0
        assert torch.equal(t[found.inputs[0].long()], found.t)
    assert len(plain) == 256
    assert set(plain.t.bincount()[:99].tolist()) <= {2, 3, 4}
    assert fine.t.bincount()[99] == 1
    assert fine.t.bincount()[:99].min() == 8
    assert len(fine) < 900
    assert not torch.equal(plain.inputs[0], spread_rows(samples, 256, 1).inputs[0])
    assert len(spread_rows(samples, 2000, 0, [edges])) == 1090


def test_every_timestep_has_a_scale_of_its_own(context):
    """With fewer rows to fit on than there are groups, the scale of each group is still that of its own values."""
    x, t = torch.ones(80, 8), torch.arange(40).repeat_interleave(2)
    x *= (1.0 + t).reshape(-1, 1)
    graph = trace(Only(), (x[:2], t[:2]))
    ctx = attrs.evolve(context, reference=graph, calibration=Growing(x=x, t=t))
    graph = Assign(edge_input="int8 tensor sym time:40", edge_weight="int8 channel").run(graph, ctx).graph
    fit_inputs(graph, AbsMax(), 5, ctx)
    scale = graph.get_buffer("layer.input0_q.scale").flatten()
    assert torch.allclose(scale / scale[0], 1.0 + torch.arange(40))


class Only(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x, t):
        return self.layer(x)


@attrs.frozen(kw_only=True, eq=False)
class Growing(UniformSteps):
    """These rows."""

    name = "growing"
    x: torch.Tensor
    t: torch.Tensor

    def compute(self, graph, ctx):
        return Samples(inputs=(self.x, self.t))


def test_recording_in_small_pieces_changes_nothing(context):
    """A memory budget that fits one node at a time gives the same graph as one that fits all."""
    large = simulated(context).graph
    small = simulated(attrs.evolve(context, memory_budget=1)).graph
    for (name, a), (_, b) in zip(large.named_buffers(), small.named_buffers(), strict=True):
        assert torch.equal(a, b), name
