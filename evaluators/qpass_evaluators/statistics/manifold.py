"""Precision and recall of one set of points against another.

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019), equations 1 and 2:
a point lies on a set's manifold if it is no farther from some point of the set than that point's k-th neighbour.
Only a band of the distances is in memory at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

BAND = 1024  # rows whose distances to all others are held at once


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """The share of generated points on the manifold of the real ones, and of real points on the generated ones'.

    >>> cloud = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    >>> precision_recall(torch.cat([cloud, cloud + 100]), cloud)
    (0.5, 1.0)
    """
    generated, real = generated.double(), real.double()
    precision = share_inside(generated, real, radii(real, neighbours))
    recall = share_inside(real, generated, radii(generated, neighbours))
    return precision, recall


def radii(points: Tensor, neighbours: int) -> Tensor:
    """Each point's distance (N) to its k-th nearest neighbour; the nearest of all is itself."""
    bands = torch.split(points, BAND)
    return torch.cat([torch.cdist(band, points).kthvalue(neighbours + 1).values for band in bands])


def share_inside(points: Tensor, centres: Tensor, radius: Tensor) -> float:
    """The share of points inside the ball of any centre."""
    bands = torch.split(points, BAND)
    inside = [(torch.cdist(band, centres) <= radius).any(1) for band in bands]
    return float(torch.cat(inside).double().mean())
