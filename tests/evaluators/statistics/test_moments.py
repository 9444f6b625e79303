"""Moments of rows in batches are those of the rows in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qpass_evaluators.statistics.moments import Moments, gather, moments_of, nothing, symmetric, upper


def rows(count: int, dimensions: int = 7, offset: float = 0.0) -> torch.Tensor:
    source = torch.Generator().manual_seed(count)
    return torch.randn(count, dimensions, generator=source, dtype=torch.float64) + offset


@pytest.mark.parametrize("cuts", [[100], [1, 99], [33, 33, 34], [0, 50, 0, 50], [1] * 100])
def test_batches_make_no_difference(cuts: list[int]) -> None:
    """However the rows are cut, mean and covariance are numpy's."""
    whole = rows(100)
    got = gather(whole.split(cuts), 7)
    assert got.count == 100
    np.testing.assert_allclose(got.mean, whole.mean(0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(got.covariance, np.cov(whole.numpy(), rowvar=False), rtol=0, atol=1e-14)


def test_a_large_mean_does_no_harm() -> None:
    """A mean 10^7 times the spread: sums of squares would have lost every digit; here eight are left."""
    whole = rows(500, offset=1e7)
    got = gather(whole.split(64), 7).covariance.numpy()
    exact = np.cov((whole - 1e7).numpy(), rowvar=False)
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-8)


def test_batches_are_raised_to_float64() -> None:
    """fp32 features are summed in float64."""
    assert moments_of(rows(4).float()).scatter.dtype == torch.float64


def test_nothing_changes_nothing() -> None:
    """The moments of no rows are merging's neutral element."""
    some = moments_of(rows(5))
    for both in (some.merge(nothing(7)), nothing(7).merge(some)):
        assert both is some


def test_one_row() -> None:
    """The covariance of a single row is 0, not NaN."""
    assert moments_of(rows(1)).covariance.abs().max() == 0


def test_triangle_and_back() -> None:
    """A symmetric matrix is its upper triangle."""
    scatter = moments_of(rows(20)).scatter
    scatter = (scatter + scatter.T) / 2  # which its sums are but for their last bit
    assert upper(scatter).shape == (28,)
    assert torch.equal(symmetric(upper(scatter), 7), scatter)


def test_merging_is_symmetric() -> None:
    """Which of two comes first does not matter beyond rounding."""
    a, b = moments_of(rows(30)), moments_of(rows(11))
    one, other = a.merge(b), b.merge(a)
    assert isinstance(one, Moments)
    assert torch.allclose(one.scatter, other.scatter, rtol=1e-13)
