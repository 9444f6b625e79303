"""Mean and covariance of rows that come in batches, in float64, without ever holding all of them.

Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), eq. 2.1:
each batch is centred on its own mean before anything is squared, so that a mean large beside the spread does no harm.
N rows, D numbers in each.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class Moments:
    """`count` rows, their mean (D), and `scatter` (D x D): the sum of (x - mean)(x - mean)ᵀ."""

    count: int
    mean: Tensor
    scatter: Tensor

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, D x D; that of a single row is 0."""
        return self.scatter / max(self.count - 1, 1)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows together.

        >>> a, b = moments_of(torch.tensor([[1.0], [2.0]])), moments_of(torch.tensor([[6.0]]))
        >>> a.merge(b).mean, a.merge(b).covariance
        (tensor([3.], dtype=torch.float64), tensor([[7.]], dtype=torch.float64))
        """
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        apart = other.mean - self.mean
        scatter = torch.addr(self.scatter + other.scatter, apart, apart, alpha=self.count * (other.count / count))
        return Moments(count=count, mean=self.mean + apart * (other.count / count), scatter=scatter)


def nothing(dimensions: int) -> Moments:
    """The moments of no rows."""
    return Moments(
        count=0,
        mean=torch.zeros(dimensions, dtype=torch.float64),
        scatter=torch.zeros(dimensions, dimensions, dtype=torch.float64),
    )


def moments_of(rows: Tensor) -> Moments:
    """The moments of one batch, N x D."""
    if not len(rows):
        return nothing(rows.shape[1])
    rows = rows.double()
    mean = rows.mean(0)
    centred = rows - mean
    return Moments(count=len(rows), mean=mean, scatter=centred.T @ centred)


def gather(batches: Iterable[Tensor], dimensions: int) -> Moments:
    """The moments of all batches, each N x D."""
    total = nothing(dimensions)
    for batch in batches:
        total = total.merge(moments_of(batch))
    return total


def upper(square: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix D x D, row by row: D (D + 1) / 2 numbers.

    >>> upper(torch.tensor([[1, 2], [2, 3]]))
    tensor([1, 2, 3])
    """
    row, column = torch.triu_indices(*square.shape)
    return square[row, column]


def symmetric(triangle: Tensor, dimensions: int) -> Tensor:
    """The inverse of `upper`."""
    row, column = torch.triu_indices(dimensions, dimensions)
    square = triangle.new_zeros(dimensions, dimensions)
    square[row, column] = triangle
    square[column, row] = triangle
    return square
