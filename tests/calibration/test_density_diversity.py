"""EDA-DM's weights against sums written out, and its features against the graph's own."""

from __future__ import annotations

import itertools

import pytest
import torch
from qpass_passes.calibration.density_diversity import (
    DensityDiversity,
    compared,
    feature_node,
    share_out,
    step_weights,
)
from qpass_passes.calibration.every_step import EveryStep

from qpass.activations import run_recording
from qpass.errors import PreconditionError


def plain(features, radius, diversity):
    """The weights of steps by loops over images x steps x elements."""
    images, steps, _ = features.shape
    density, diverse = [0.0] * steps, [0.0] * steps
    for i, j in itertools.product(range(steps), repeat=2):
        distance = sum(((f[i] - f[j]) ** 2).mean().item() for f in features) / images
        cosine = sum((f[i] @ f[j] / f[i].norm() / f[j].norm()).item() for f in features) / images
        density[i] += i != j and distance <= radius
        diverse[i] += 1 - cosine
    return torch.tensor([
        d / sum(density) + diversity * v / sum(diverse) for d, v in zip(density, diverse, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("diversity", [0.0, 1.0, 1.2])
def test_weights_are_the_sums(diversity, context):
    """On the tiny UNet's middle attention, at four steps of three images."""
    samples = EveryStep(samples=3).compute(context.reference, context)
    node = feature_node(context.reference, "")
    recorded = run_recording(context.reference, [node], samples.inputs)[node]
    features = recorded.flatten(1).double().reshape(4, 3, -1).transpose(0, 1)
    distance, cosine = compared(context.reference, node, samples, 4, context)
    radius = distance[distance > 1e-9].median().item() * 1.01  # between two distances
    ours = step_weights(distance, cosine, radius, diversity)
    assert torch.allclose(ours.float(), plain(features, radius, diversity), atol=1e-5)
    assert ours.unique().numel() > 1


def test_steps_that_are_all_alike_share_equally():
    """No neighbours, or no differences: no score tells one step from another."""
    far, same = torch.full((4, 4), 9.0), torch.ones(4, 4)
    assert torch.allclose(step_weights(far.fill_diagonal_(0), same, 3.0, 1.2), torch.full((4,), 2.2 / 4))


@pytest.mark.parametrize("count", [1, 3, 7, 100, 1024])
def test_rows_are_shared_by_weight(count):
    """They add up; none is further than one row from its share of what is not given to all."""
    weights = torch.tensor([0.5, 0.1, 0.0, 2.0, 0.7, 0.3])
    counts = share_out(count, weights)
    assert counts.sum() == count
    least = 1 if count >= 6 else 0
    exact = weights / weights.sum() * (count - 6 * least) + least
    assert (counts - exact).abs().max() < 1
    assert counts.min() >= least


def test_the_set_has_the_shares(context):
    """Rows at each timestep are as many as the weights say, and density draws them from the other end."""
    found = {}
    for diversity in (0.0, 100.0):
        question = DensityDiversity(samples=40, diversity=diversity, radius=0.5, probe=3)
        samples = question.compute(context.reference, context)
        probe = EveryStep(samples=3).compute(context.reference, context)
        scores = compared(context.reference, feature_node(context.reference, ""), probe, 4, context)
        expected = share_out(40, step_weights(*scores, 0.5, diversity))
        found[diversity] = [int((samples.t == t).sum()) for t in (750, 500, 250, 0)]
        assert found[diversity] == expected.tolist()
    assert len(samples) == 40


def test_which_node_is_looked_at(context):
    """The middle block's attention; or what a glob names, the last if several; one that names nothing is refused."""
    assert str(feature_node(context.reference, "").meta["origin"]).startswith("mid_block.attentions.0")
    assert feature_node(context.reference, "*.to_q").meta["origin"].endswith(".to_q")
    with pytest.raises(PreconditionError, match=r"the glob 'mid\*zzz' of `feature` matches no node"):
        feature_node(context.reference, "mid*zzz")
