"""One factor for each channel, from all timesteps: its formula by hand, its choices, what it brings."""

from __future__ import annotations

import copy

import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.simulate import Simulate
from qpass_passes.tcr import STRENGTHS, Tcr, by_group, joint

from qpass.kernels import reference
from qpass.manager import PassManager
from qpass.slots import find


def plainly(maxima, target):
    """The two equations, term by term."""
    steps, channels = len(maxima), len(maxima[0])
    found = []
    for d in range(channels):
        above = sum(maxima[t][d] * maxima[t][d] / target(maxima[t]) for t in range(steps))
        found.append(above / sum(maxima[t][d] for t in range(steps)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_joint_factor_is_the_papers(seed):
    """Against loops over timesteps and channels, with the least channel and with the geometric mean as target."""
    maxima = torch.rand(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 9 + 0.1

    def geometric(row):
        product = 1.0
        for value in row:
            product *= value
        return product ** (1 / len(row))

    rows = maxima.tolist()
    assert joint(maxima, "min", 0).tolist() == pytest.approx(plainly(rows, min))
    assert joint(maxima, "mean", 0).tolist() == pytest.approx(plainly(rows, geometric))
    assert joint(maxima, "percentile", 0).tolist() == pytest.approx(plainly(rows, min))
    assert joint(maxima, "percentile", 100).tolist() == pytest.approx(plainly(rows, max))


def test_timesteps_with_large_activations_count_most():
    """A channel of 1 at the small step and 10 at the large one, beside one of 1: nearer 10 than the plain mean, 5.5."""
    found = joint(torch.tensor([[1.0, 1.0], [10.0, 1.0]]), "min", 0)
    assert float(found[0]) == pytest.approx((1 + 100) / 11)


def test_dead_channels_and_dead_steps():
    """A channel that is always zero gets 1 and is no target; a timestep at which all is zero has no say."""
    maxima = torch.tensor([[0.0, 2.0, 4.0], [0.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
    found = joint(maxima, "min", 0)
    assert torch.equal(found, torch.cat([torch.ones(1).double(), joint(maxima[[0, 2], 1:], "min", 0)]))
    assert joint(torch.zeros(2, 3), "percentile", 5).tolist() == [1, 1, 1]


def test_groups_take_the_maxima_of_runs():
    """Ten timesteps in three runs of 3, 3 and 4; as many groups as there are timesteps, or more, change nothing."""
    maxima = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([maxima[:3].amax(0), maxima[3:6].amax(0), maxima[6:].amax(0)])
    assert torch.equal(by_group(maxima, 3), expected)
    assert torch.equal(by_group(maxima, 10), maxima)
    assert torch.equal(by_group(maxima, 99), maxima)


def test_r_stays_within_its_limit():
    """Within 1 and limit where the target is small, within 1/limit and limit around the mean; powers of two at last."""
    maxima = torch.tensor([[0.01, 1.0, 2.0, 1000.0]])
    assert Tcr(target="min", limit=8).factor(maxima).tolist() == [1, 8, 8, 8]
    middle = 20**0.25  # the geometric mean of the four
    expected = [1 / 8, 1 / middle, 2 / middle, 8]
    assert Tcr(target="mean", limit=8).factor(maxima).tolist() == pytest.approx(expected)
    assert Tcr(target="min", limit=0).factor(maxima).tolist() == pytest.approx([1, 100, 200, 100_000])
    assert Tcr(power_of_two=True).rounded(torch.tensor([1.0, 3.0, 5.0, 0.3])).tolist() == [1, 4, 4, 0.25]


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_planted_outliers(planted, kind, bits):
    """Inputs of 6 bits: never worse than without; with 4-bit weights at most 0.6 of the error."""
    text = f"int{bits} channel/int6 tensor"
    plain, with_tcr = planted(kind, text), planted(kind, text, Tcr())
    assert with_tcr <= plain
    if bits == 4:
        assert with_tcr < 0.6 * plain


def test_the_strength_is_the_best_of_the_five(planted):
    """By brute force: the error with the search is the least of those at fixed strengths, on its own rows."""
    text = "int4 channel/int6 tensor"
    fixed = [planted("linear", text, Tcr(search=False, strength=s, limit=0)) for s in STRENGTHS]
    assert planted("linear", text, Tcr(limit=0)) == min(fixed)
    assert len(set(fixed)) == len(STRENGTHS)


@pytest.mark.parametrize("power_of_two", [True, False])
def test_a_model_stays_what_it_was(context, power_of_two):
    """Powers of two where they end in quantizers change no bit of a layer; the model below 1e-5; none is left after."""
    graph = copy.deepcopy(context.reference)
    step = Tcr(power_of_two=power_of_two, search=False)
    run = PassManager([Assign(weight="int4 channel", input="int4 tensor time:4", attention="float"), step]).run(
        graph, context
    )
    inputs = context.model.example(3)
    with torch.no_grad():
        apart = float((run.graph(*inputs) - context.reference(*inputs)).abs().max())
    assert apart == 0 if power_of_two else 0 < apart < 1e-5
    moved = [node for node in run.graph.graph.nodes if node.target is reference.rescale]
    inverses = [find(run.graph, str(node.args[2].target)) for node in moved]
    assert any(float(inverse.min()) < 0.9 for inverse in inverses)
    realised = PassManager([Simulate()]).run(run.graph, context).graph
    assert not [node for node in realised.graph.nodes if node.target is reference.rescale]


def test_kinds(context):
    """Convolutions alone, as in the paper, or linear layers alone; together they are all."""
    counts = {}
    for kind in ("all", "convolutions", "linear"):
        graph = copy.deepcopy(context.reference)
        step = Tcr(kinds=kind, search=False, rows=4)
        counts[kind] = PassManager([Assign(), step]).run(graph, context).records[-1].notes["layers"]
    assert counts["all"] == counts["convolutions"] + counts["linear"]
    assert min(counts.values()) > 0
