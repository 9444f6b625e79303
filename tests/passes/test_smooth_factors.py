"""Factors of `smooth`: SmoothQuant's and PTQ4DiT's by hand, rank correlation against scipy."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from qpass_passes.smooth import balanced, factors, spearman


def test_factors_by_hand():
    """sqrt(s_X / s_W) around a geometric mean of 1; strength 1 takes all of X's spread, 0 all of W's; limits hold."""
    of_x, of_w = torch.tensor([16.0, 1.0]), torch.tensor([1.0, 4.0])
    assert factors(of_x, of_w, 0.5).tolist() == pytest.approx([8**0.5, 8**-0.5])
    assert factors(of_x, of_w, 1.0).tolist() == pytest.approx([4, 0.25])
    assert factors(of_x, of_w, 0.0).tolist() == pytest.approx([2, 0.5])
    assert factors(of_x, of_w, 1.0, limit=2).tolist() == pytest.approx([2, 0.5])
    assert factors(torch.zeros(2), of_w, 0.5).tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_scipys(seed):
    """With ties, too."""
    source = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(0, 8, (50,), generator=source).float() for _ in range(2))
    assert float(spearman(a, b)) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-6)


def test_salience_over_time_by_hand():
    """rho is 1 at the first step, -1 at the second: weights e^-1 and e^1 over their sum."""
    of_x, of_w = torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]]), torch.tensor([1.0, 2.0, 3.0])
    first, second = (torch.tensor(sign).exp() / 2 / torch.tensor(1.0).cosh() for sign in (-1.0, 1.0))
    assert torch.allclose(balanced(of_x, of_w), first * of_x[0] + second * of_x[1])
