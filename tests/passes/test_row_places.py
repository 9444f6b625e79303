"""Rows are found where they stand, also in sequences that go first, in attention's heads and in guided batches."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.brecq import Brecq
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.equivalence.channels import ChannelRanges
from qpass_passes.fitting import fit_weights
from qpass_passes.gptq import Gptq
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction.chain import chain, cut_into
from qpass_passes.reconstruction.rows import Pool
from qpass_passes.reconstruction.streams import Streams
from qpass_passes.row_places import Places, look
from qpass_passes.simulate import Simulate
from torch import Tensor, nn

from qpass.activations import Samples, run_recording
from qpass.errors import PreconditionError
from qpass.graph import block_module, trace
from qpass.manager import PassManager
from qpass.slots import find

ROWS, CPU = 32, torch.device("cpu")


class Net(nn.Module):
    """Tokens B x 6 x 8, in another layout between its first and its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.between(self.first(x) * (1 + t.reshape(-1, 1, 1) / 100)))


class SequenceFirst(Net):
    def between(self, h: Tensor) -> Tensor:
        return torch.relu(self.middle(torch.relu(h.transpose(0, 1)))).transpose(0, 1)


class Halves(Net):
    def between(self, h: Tensor) -> Tensor:
        u, v = self.middle(torch.cat([h, 1 + h.square()])).chunk(2)
        return u + 2 * (v - u)


class Flat(Net):
    """(6 B) x 8 between: all rows' first tokens, then all rows' second ones."""

    def between(self, h: Tensor) -> Tensor:
        return torch.relu(self.middle(h.transpose(0, 1).reshape(-1, 8))).reshape(6, -1, 8).transpose(0, 1)


class Attention(Net):
    """PyTorch's own, which takes its tokens apart with the sequence first, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def between(self, h: Tensor) -> Tensor:
        return h + self.middle(self.attention(h, h, h, need_weights=False)[0])


class Mixed(Net):
    """Every row hangs on the others."""

    def between(self, h: Tensor) -> Tensor:
        return self.middle(h - 3 * h.mean(0, keepdim=True))


@attrs.frozen(kw_only=True, eq=False)
class Noise(UniformSteps):
    """Rows of noise at growing timesteps."""

    name = "noise"

    def compute(self, graph, ctx):
        source = torch.Generator().manual_seed(0)
        return Samples(inputs=(torch.randn(ROWS, 6, 8, generator=source), torch.arange(ROWS) * 10.0))


def of(context, kind):
    """A context with such a model and those rows."""
    torch.manual_seed(0)
    graph = trace(kind().eval(), (torch.randn(2, 6, 8), torch.zeros(2)))
    return attrs.evolve(context, reference=graph, calibration=Noise())


@pytest.mark.parametrize("kind", [SequenceFirst, Halves, Flat, Attention])
def test_chosen_rows_are_those_rows(context, kind, tmp_path):
    """What every layer gives for rows that are picked from what its chain keeps is what is kept of these rows, and
    the last is the model's output for them."""
    ctx = of(context, kind)
    graph = Assign(weight="int4 channel", input="float").run(copy.deepcopy(ctx.reference), ctx).graph
    fit_weights(graph, Mse(), ctx)
    samples = ctx.get(ctx.calibration, graph)
    cut = chain(graph, cut_into(graph, "layer"), samples, CPU, budget=1 << 32)
    streams, index = Streams(graph, cut, samples, Pool(10**9, tmp_path), CPU), torch.tensor([3, 30, 1, 17, 18])
    for block in cut.blocks:
        module = block_module(graph, block)
        streams.advance_full(block, module)
        with torch.no_grad():
            made = module(*(streams.read_full(node, index) for node in block.inputs))
        for node, value in zip(block.outputs, made, strict=True):
            assert torch.allclose(streams.read_full(node, index), value, atol=1e-5)
    with torch.no_grad():
        expected = ctx.reference(*samples.take(index).inputs)
    assert torch.allclose(streams.read_full(graph.graph.output_node().args[0], index), expected, atol=1e-5)


def test_they_stand_where_the_model_puts_them(context):
    """A sequence that goes first, both halves of a batch, and tokens of all rows by turns, each by its layer."""
    wanted = {SequenceFirst: Places(axis=1), Halves: Places(outer=2), Flat: Places(outer=6)}
    for kind, places in wanted.items():
        ctx = of(context, kind)
        node = next(node for node in ctx.reference.graph.nodes if node.target == "middle")
        ((_, value, found),) = look(ctx.reference, [node], ctx.get(ctx.calibration, ctx.reference), CPU)
        assert found == places
        assert torch.equal(found.as_given(found.by_row(value)), value)


@pytest.mark.parametrize("kind", [SequenceFirst, Halves, Flat])
def test_channels_are_watched_by_the_timesteps_of_their_rows(context, kind):
    """What a layer reads goes up to at each timestep: as when the model is given that row alone."""
    ctx = of(context, kind)
    samples = ctx.get(ctx.calibration, ctx.reference)
    found = ctx.get(ChannelRanges(calibration=ctx.calibration, rows=ROWS), ctx.reference)
    node = next(node for node in ctx.reference.graph.nodes if node.target == "middle")
    for place in range(ROWS):
        value = run_recording(ctx.reference, node.args, samples.take(torch.tensor([place])).inputs)[node.args[0]]
        name = node.meta["origin"]
        assert torch.allclose(found.low[name][place], value.flatten(0, -2).amin(0), atol=1e-5)
        assert torch.allclose(found.high[name][place], value.flatten(0, -2).amax(0), atol=1e-5)
        assert torch.allclose(found.typical[name][place], value.flatten(0, -2).abs().amax(0), atol=1e-5)


def test_rows_that_are_alike_do_not_hide_the_order():
    """An input that is the same for the first, the middle and the last row shows its places by one that is not."""
    x, label = torch.randn(5, 2), torch.tensor([7.0, 7.0, 7.0, 1.0, 7.0])

    class Turns(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return x.sum() * 0 + (label.reshape(1, -1, 1) * torch.tensor([1.0, 2.0]).reshape(2, 1, 1)).reshape(-1)

    inputs = x, torch.zeros(5), label
    graph = trace(Turns(), inputs)
    node = graph.graph.output_node().args[0]
    ((_, _, found),) = look(graph, [node], Samples(inputs=inputs), CPU)
    assert found == Places(outer=2)


class TokensFirst(Net):
    """What `SequenceFirst` computes, with the rows where images have them."""

    def between(self, h: Tensor) -> Tensor:
        return torch.relu(self.middle(torch.relu(h)))


def test_gptq_finds_the_same_codes_whatever_goes_first(context):
    """The layers see the same numbers, in another order."""
    codes = []
    for kind in (SequenceFirst, TokensFirst):
        ctx = of(context, kind)
        assign = Assign(weight="int3 channel", input="int8 tensor", edge_weight="int3 channel")
        graph = PassManager([assign, Gptq()]).run(copy.deepcopy(ctx.reference), ctx).graph
        codes.append(torch.stack([find(graph, f"{name}.weight_q.codes") for name in ("first", "middle", "last")]))
    assert (codes[0] == codes[1]).float().mean() > 0.99


def test_learning_helps_a_sequence_that_goes_first(context):
    """It lowers the error of the model's output; on rows that are mixed up it would raise it."""
    ctx, errors = of(context, SequenceFirst), []
    samples = ctx.get(ctx.calibration, ctx.reference)
    for passes in ((), (Brecq(iterations=300, batch=16, rate=1e-2),)):
        assign = Assign(weight="int3 channel", input="int8 tensor", edge_weight="int3 channel")
        run = PassManager([assign, *passes, Simulate()]).run(copy.deepcopy(ctx.reference), ctx)
        with torch.no_grad():
            errors.append(float((run.graph(*samples.inputs) - ctx.reference(*samples.inputs)).norm()))
    assert errors[1] < 0.97 * errors[0]


def test_rows_that_hang_on_each_other_are_refused(context):
    """There no block can be computed from chosen rows; the error names the tensor."""
    ctx = of(context, Mixed)
    assign = Assign(weight="int3 channel", input="int8 tensor", edge_weight="int3 channel")
    with pytest.raises(PreconditionError, match=r"cannot be found in '.*', a tensor of shape \(3, 6, 8\)"):
        PassManager([assign, Gptq()]).run(copy.deepcopy(ctx.reference), ctx)


def test_time_groups_of_a_sequence_that_goes_first_are_refused(context):
    """Its first axis counts tokens; taken for images they would get each other's scales."""
    ctx = of(context, SequenceFirst)
    graph = Assign(weight="int8 channel", input="int8 tensor time:4").run(copy.deepcopy(ctx.reference), ctx).graph
    with pytest.raises(PreconditionError, match=r"'middle\.input0_q' .* for each image in axis 1, .* 'time:4'"):
        Simulate().run(graph, ctx)
