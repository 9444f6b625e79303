"""Kernel distance: the unbiased squared maximum mean discrepancy under a cubic kernel, over random subsets.

Bińkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs" (2018), section 4: k(x, y) = (xᵀy / D + 1)³.
The subsets are those that torch-fidelity draws from the same seed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def kernel_distances(a: Tensor, b: Tensor, *, subsets: int, size: int, seed: int) -> Tensor:
    """MMD² of `subsets` pairs of random subsets of `size` rows of a and b (N x D): one for each, in float64."""
    source = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        ours = a[torch.from_numpy(source.choice(len(a), size, replace=False))]
        theirs = b[torch.from_numpy(source.choice(len(b), size, replace=False))]
        found.append(discrepancy(ours.double(), theirs.double()))
    return torch.stack(found)


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased MMD² of two sets of m rows: the mean kernel within each, pairs of a row with itself left out,
    less twice the mean between them.

    >>> discrepancy(torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [0.0]]))
    tensor(7.)
    """
    m = len(a)
    within = sum((square.sum() - square.trace()) for square in (cubic(a, a), cubic(b, b)))
    return torch.as_tensor(within / (m * (m - 1)) - 2 * cubic(a, b).mean())


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) of every pair of rows."""
    return (x @ y.T / x.shape[1] + 1) ** 3
