"""FID from features, by the textbook: numpy and scipy, nothing of qpass's own."""

from __future__ import annotations

import numpy as np
import scipy.linalg


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """|mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^½), in float64; a and b N x D."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean = a.mean(0) - b.mean(0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (S_a S_b)^½ = tr (R S_b R)^½ with R = S_a^½: symmetric, so that eigenvalues are real
    values, vectors = scipy.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(scipy.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(mean @ mean + np.trace(first) + np.trace(second) - 2 * cross)
