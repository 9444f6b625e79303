"""PTQ4DM's timesteps against the distribution they are drawn from."""

from __future__ import annotations

import pytest
import torch
from qpass_passes.calibration.normal_steps import NormalSteps, shares
from scipy import stats

TIMES = torch.arange(990, -1, -10)


def drawn(context, **options):
    """The timesteps of 4,000 images, on 100 steps."""
    chosen = NormalSteps(samples=4000, **options).choose(TIMES, context.reference, context)
    assert (chosen.sum(0) == 1).all()
    return TIMES[chosen.int().argmax(0)].double()


@pytest.mark.parametrize(("mean", "std"), [(0.4, 0.4), (0.5, 0.1), (0.0, 0.2), (1.0, 3.0)])
def test_redrawn_is_the_truncated_normal(mean, std):
    """Quantiles are scipy's, whatever share of the distribution lies outside."""
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    expected = stats.truncnorm.ppf(u.numpy(), -mean / std, (1 - mean) / std, loc=mean, scale=std)
    assert torch.allclose(shares(u, mean, std, "redraw"), torch.from_numpy(expected), atol=1e-9)


def test_clamped_is_the_normal_with_its_tails_at_the_ends():
    """Quantiles of N(0.4, 0.4^2), and 0 or 1 where those lie outside."""
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    expected = torch.from_numpy(stats.norm.ppf(u.numpy(), 0.4, 0.4)).clamp(0, 1)
    assert torch.allclose(shares(u, 0.4, 0.4, "clamp"), expected, atol=1e-9)


def test_timesteps_follow_the_distribution(context):
    """Mean, spread, skew and the ends' shares of 4,000 draws, within four standard errors."""
    t = drawn(context, outside="redraw")
    law = stats.truncnorm(-1.0, 1.5, loc=0.4, scale=0.4)
    assert t.mean().item() == pytest.approx(999 * law.mean(), abs=4 * 999 * law.std() / 4000**0.5 + 5)
    assert t.std().item() == pytest.approx(999 * law.std(), rel=0.06)
    clamped = drawn(context)
    assert (clamped == 0).double().mean().item() == pytest.approx(stats.norm.cdf(-1 + 0.005 / 0.4), abs=0.025)
    assert clamped.mean() < 500  # towards little noise


def test_a_draw_takes_the_nearest_step(context):
    """On two steps far apart, with hardly any spread: all images are at the step that is nearer to the mean."""
    for mean, expected in ((0.1, 0), (0.9, 900), (0.44, 0), (0.46, 900)):
        chosen = NormalSteps(samples=20, mean=mean, std=1e-4).choose(
            torch.tensor([900, 0]), context.reference, context
        )
        assert chosen[[900, 0].index(expected)].all()


def test_more_images_leave_the_first_as_they_are(context):
    """Image i's timestep depends on the seed and i alone."""
    few = NormalSteps(samples=5).choose(TIMES, context.reference, context)
    many = NormalSteps(samples=9).choose(TIMES, context.reference, context)
    assert torch.equal(few, many[:, :5])
