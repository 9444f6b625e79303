"""The Fréchet distance agrees with scipy's matrix square root, and with closed forms where scipy has no digits left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qpass_evaluators.statistics.frechet import frechet, trace_of_root
from qpass_evaluators.statistics.moments import Moments, moments_of
from scipy.linalg import sqrtm

Array = np.ndarray


def by_scipy(a: Moments, b: Moments) -> float:
    """The textbook's formula with a general matrix square root."""
    apart = (a.mean - b.mean).numpy()
    s, t = a.covariance.numpy(), b.covariance.numpy()
    return float(apart @ apart + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t)).real)


def gaussian(seed: int, dimensions: int, decay: float, count: int | None = None) -> Moments:
    """Moments of seeded rows whose spread falls as exp(-decay i) along random directions."""
    source = np.random.default_rng(seed)
    turn = np.linalg.qr(source.standard_normal((dimensions, dimensions)))[0]
    rows = source.standard_normal((count or 4 * dimensions, dimensions)) * np.exp(-decay * np.arange(dimensions))
    return moments_of(torch.from_numpy(rows @ turn + 0.1 * source.standard_normal(dimensions)))


@pytest.mark.parametrize("dimensions", [1, 2, 64, 256])
def test_scipy_agrees(dimensions: int) -> None:
    """On well-conditioned covariances to 1e-9."""
    a, b = gaussian(1, dimensions, 0.0), gaussian(2, dimensions, 0.01)
    assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)


@pytest.mark.parametrize("decay", [0.02, 0.05, 0.1])
def test_scipy_agrees_on_ill_conditioned_covariances(decay: float) -> None:
    """Condition numbers from 1e4 to 1e22: within 1e-4."""
    a, b = gaussian(3, 256, decay), gaussian(4, 256, decay)
    assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-4)


def test_scipy_agrees_on_covariances_without_full_rank() -> None:
    """Fewer rows than dimensions: within 1e-4, and a real number."""
    a, b = gaussian(5, 256, 0.01, count=40), gaussian(6, 256, 0.01, count=100)
    assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-4)


@pytest.mark.parametrize("smallest", [1e-4, 1e-8, 1e-16, 0.0])
def test_the_closed_form_of_covariances_that_commute(smallest: float) -> None:
    """With common eigenvectors the trace is Σ √(s t), to 1e-7 down to singular ones, where scipy's is off by more."""
    source = np.random.default_rng(0)
    turn = np.linalg.qr(source.standard_normal((200, 200)))[0]
    s, t = (np.concatenate([source.uniform(0.5, 2, 100), np.full(100, smallest)]) for _ in range(2))
    a, b = (torch.from_numpy(turn * value @ turn.T) for value in (s, t))
    exact = np.sqrt(s * t).sum()
    assert float(trace_of_root((a + a.T) / 2, (b + b.T) / 2)) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("count", [3, 64, 500])
def test_the_distance_to_itself_is_zero(count: int) -> None:
    """Whatever the rank, to 1e-6 of the trace."""
    a = gaussian(7, 64, 0.05, count=count)
    assert abs(frechet(a, a)) < 1e-6 * float(a.covariance.trace())


def test_it_is_symmetric() -> None:
    """Which comes first does not matter."""
    a, b = gaussian(8, 64, 0.1), gaussian(9, 64, 0.0)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)


def test_a_constant_side() -> None:
    """Images that are all alike have no spread: what is left is the other side's, and the way between the means."""
    a = moments_of(torch.ones(10, 4))
    b = gaussian(10, 4, 0.0)
    apart = a.mean - b.mean
    assert frechet(a, b) == pytest.approx(float(apart @ apart + b.covariance.trace()), rel=1e-12)
