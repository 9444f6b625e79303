"""A model whose output is shrunk and shifted at each timestep is given back the output it should have."""

from __future__ import annotations

import copy

import attrs
import numpy as np
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.moments import Moments
from qpass_passes.output_correction import OutputCorrection
from qpass_passes.simulate import Simulate

from qpass.errors import PreconditionError, RecipeError
from qpass.manager import PassManager
from qpass.recipe import check_passes


@pytest.fixture
def rows(context):
    """The calibration rows."""
    return context.get(context.calibration, context.reference)


class Harm(torch.nn.Module):
    """A factor and a shift for each of some timesteps."""

    def __init__(self, times, gain, shift):
        super().__init__()
        self.times, self.gain, self.shift = times, gain, shift

    def forward(self, x, t):
        at = (self.times == t[:, None]).long().argmax(1)
        return x * self.gain[at] + self.shift[at]


def harmed(context, gain, shift):
    """The original, but for a factor and a shift of its output at each of the sampled timesteps."""
    graph = copy.deepcopy(context.reference)
    times = context.get(context.calibration, context.reference).t.unique()
    graph.add_submodule("harm", Harm(times, gain, shift))
    (last,) = graph.graph.find_nodes(op="output")
    _, t, *_ = graph.graph.find_nodes(op="placeholder")
    with graph.graph.inserting_before(last):
        node = graph.graph.call_module("harm", (last.args[0], t))
    last.args = (node,)
    graph.recompile()
    return graph


def corrected(graph, context, **options):
    """By the pass alone, whatever made the graph."""
    return OutputCorrection(**options).run(graph, context).graph


def plan(context):
    """Seeded factors and shifts for every sampled timestep."""
    count = len(context.get(context.calibration, context.reference).t.unique())
    generator = torch.Generator().manual_seed(0)
    gain = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    return gain, torch.randn(count, 3, 1, 1, generator=generator)


def test_what_was_planted_is_undone(context, rows):
    """To fp32's rounding, on inputs that it has not seen as well."""
    graph = corrected(harmed(context, *plan(context)), context)
    with torch.no_grad():
        for inputs in (rows.inputs, (torch.randn_like(rows.inputs[0]), rows.t)):
            assert torch.allclose(graph(*inputs), context.reference(*inputs), rtol=1e-4, atol=1e-5)


def test_the_shift_alone(context, rows):
    """The mean error by timestep and channel is gone, and nothing is scaled."""
    gain, shift = plan(context)
    before = harmed(context, gain, shift)
    graph = corrected(copy.deepcopy(before), context, gain=False)
    with torch.no_grad():
        ours, plain, theirs = (one(*rows.inputs) for one in (graph, before, context.reference))
    for t in rows.t.unique():
        at = rows.t == t
        assert torch.allclose((ours - theirs)[at].mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
        moved = (ours - plain)[at]
        assert torch.allclose(moved, moved[:1, :, :1, :1].expand_as(moved), atol=1e-5)


def test_the_factor_is_bounded(context, rows):
    """Where nearly nothing of the signal is left, what is there is not blown up."""
    gain, shift = plan(context)
    graph = corrected(harmed(context, gain * 0.01, shift), context, least=0.5)
    plain = harmed(context, gain * 0.01, shift)
    with torch.no_grad():
        ratio = graph(*rows.inputs).std((1, 2, 3)) / plain(*rows.inputs).std((1, 2, 3))
    assert ratio.max() < 2.001 * 1.001


def test_error_has_nothing_left_to_do_with_the_output(context, rows):
    """Of a really rounded model: regressed once more, k and mu are 0; before, they are not."""
    make = [Assign(weight="int3 channel", input="int4 tensor"), Simulate()]
    slopes = []
    for passes in (make, [*make, OutputCorrection()]):
        graph = PassManager(passes).run(copy.deepcopy(context.reference), context).graph
        with torch.no_grad():
            ours, theirs = graph(*rows.inputs).numpy(), context.reference(*rows.inputs).numpy()
        for t in rows.t.unique():
            y, error = (x[rows.t.numpy() == int(t)] for x in (theirs, ours - theirs))
            centred, off = (x - x.mean((0, 2, 3), keepdims=True) for x in (y, error))
            slopes.append(((centred * off).sum() / (centred**2).sum(), abs(error.mean((0, 2, 3))).max()))
    half = len(slopes) // 2
    assert max(max(abs(k), mu) for k, mu in slopes[half:]) < 1e-4
    assert min(max(abs(k), mu) for k, mu in slopes[:half]) > 1e-3


def test_a_predicted_variance_stays(context, rows):
    """Channels after the image's own are none of its business."""
    gain, shift = plan(context)
    graph, reference = harmed(context, gain, shift), copy.deepcopy(context.reference)
    for one in (graph, reference):
        (last,) = one.graph.find_nodes(op="output")
        with one.graph.inserting_before(last):
            twice = one.graph.call_function(torch.ops.aten.cat.default, ([last.args[0], last.args[0]], 1))
        last.args = (twice,)
        one.recompile()
    context = attrs.evolve(context, reference=reference)
    with torch.no_grad():
        before = graph(*rows.inputs)
        after, theirs = corrected(graph, context)(*rows.inputs), reference(*rows.inputs)
    assert torch.equal(after[:, 3:], before[:, 3:])
    assert torch.allclose(after[:, :3], theirs[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 5, 4, 4), (12, 7, 5)], ids=["image", "sequence"])
def test_channels_wherever_they_are(shape):
    """Against numpy's lines through all points of a group: channels are first in an image, last in a sequence."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(shape, generator=generator)
    q = 0.8 * y + 0.1 * torch.randn(shape, generator=generator)
    group = torch.arange(12) % 2
    sums = Moments(2, None)
    for part in (slice(0, 5), slice(5, 12)):
        sums.add(y[part], q[part], group[part])
    kept, gain, shift = sums.regress(0.5)
    axes = (0, 2, 3) if len(shape) == 4 else (0, 1)
    for g in range(2):
        theirs, ours = (x[group == g].double().numpy() for x in (y, q))
        slope, _ = np.polyfit((theirs - theirs.mean(axes, keepdims=True)).ravel(), ours.ravel(), 1)
        assert float(kept[g]) == pytest.approx(slope, rel=1e-6)
        assert float(gain[g].flatten()[0]) == pytest.approx(1 / slope, rel=1e-6)
        left = theirs.mean(axes, keepdims=True)[0] - ours.mean(axes, keepdims=True)[0] / slope
        assert np.allclose(shift[g].numpy(), left, atol=1e-6)


def test_more_groups_than_timesteps(context):
    """Is one sentence, with the number."""
    with pytest.raises(PreconditionError, match="output-correction: groups is 99, but calibration saw only"):
        corrected(copy.deepcopy(context.reference), context, groups=99)


def test_an_exact_model_stays_exact(context, rows):
    """Nothing to correct: the output is the same but for a rounding."""
    graph = corrected(copy.deepcopy(context.reference), context)
    with torch.no_grad():
        assert torch.allclose(graph(*rows.inputs), context.reference(*rows.inputs), rtol=1e-5, atol=1e-6)


def test_where_it_stands(context):
    """After what rounds, and once."""
    with pytest.raises(RecipeError, match="needs 'realised'"):
        check_passes([Assign(), OutputCorrection()], context.catalog)
    with pytest.raises(RecipeError, match="cannot come after 'output-correction'"):
        check_passes([Assign(), Simulate(), OutputCorrection(), OutputCorrection()], context.catalog)
