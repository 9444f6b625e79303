"""The Fréchet distance of two Gaussians, by symmetric eigenvalues.

Dowson and Landau (1982): d² = |μ₁ - μ₂|² + tr S₁ + tr S₂ - 2 tr (S₁S₂)^½. With S = L Lᵀ, S₁S₂ has the eigenvalues of
(L₁ᵀL₂)(L₁ᵀL₂)ᵀ, so that the last trace is the sum of the singular values of L₁ᵀL₂: real and never negative, whatever
the covariances' rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass_evaluators.statistics.moments import Moments

NEGLIGIBLE = 1e-9  # the largest error of the trace, beside the trace itself, that is not worth a slower method
EPSILON = torch.finfo(torch.float64).eps


def frechet(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance, as FID is defined.

    >>> from qpass_evaluators.statistics.moments import moments_of
    >>> rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 4.0]])
    >>> round(frechet(moments_of(rows), moments_of(rows + 3)), 12)  # moved by (3, 3)
    18.0
    """
    apart = a.mean - b.mean
    spread = a.covariance.trace() + b.covariance.trace()
    return float(apart @ apart + spread - 2 * trace_of_root(a.covariance, b.covariance))


def trace_of_root(a: Tensor, b: Tensor) -> Tensor:
    """tr (AB)^½ of two positive semi-definite matrices D x D, in float64."""
    product = root(a).T @ root(b)
    if not product.numel():  # one of them is 0
        return torch.zeros(())
    if product.shape[0] < product.shape[1]:
        product = product.T
    squared = torch.linalg.eigvalsh(product.T @ product).clamp(min=0)
    values: Tensor = squared.sqrt()
    # squaring costs small singular values their digits: an eigenvalue is off by up to `noise`, its root by
    # noise / (2 root), or √noise at the most
    noise = EPSILON * squared.max()
    error = (noise / (2 * values)).clamp(max=noise.sqrt()).sum()
    if error > NEGLIGIBLE * values.sum():
        values = torch.linalg.svdvals(product)
    return values.sum()


def root(square: Tensor) -> Tensor:
    """L with L Lᵀ = S, D x rank. Cholesky's where it exists; else from eigenvalues, those that are noise left out."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(square)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(square)
    kept = values > len(values) * EPSILON * values.max()
    factor = vectors[:, kept] * values[kept].sqrt()
    return factor
