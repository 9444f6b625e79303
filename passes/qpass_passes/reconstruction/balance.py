"""How much each timestep counts in a block's loss.

The error of late steps, where little noise is left to predict, may be a hundred times that of the first ones, on which
the image hangs: where all rows count by their error, a block learns for the former, at the cost of the latter.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOOKED_AT = 320  # rows, at most, by whose error timesteps are weighed
NOTHING = 1e-6  # of the largest error: below this an error is none


def balancing(error: Tensor, power: float) -> Tensor:
    """Weights error^-power of timesteps, such that what they weigh keeps its mean; 1 where the error is not known.

    >>> balancing(torch.tensor([1.0, 4.0, torch.nan]), 1.0)
    tensor([2.5000, 0.6250, 1.0000])
    """
    known = error.isfinite()
    some, found = error[known], torch.ones(len(error))
    if bool((some > 0).any()):
        weight = some.clamp(min=float(some.max()) * NOTHING).pow(-power)
        found[known] = weight * (some.mean() / (weight * some).mean())
    return found
