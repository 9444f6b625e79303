"""The Inception Score's formula on the logits of any classifier.

Salimans et al., "Improved Techniques for Training GANs" (2016), section 4: exp E_x KL(p(y|x) ‖ p(y)), its mean over
splits of the images. Whose logits they are decides what the figure may be called.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def scores(logits: Tensor, splits: int = 10) -> Tensor:
    """The score of each of `splits` consecutive parts of the images, from logits N x classes, in float64.

    >>> sure = 100 * torch.eye(4).repeat(2, 1)  # each of four classes twice, without a doubt
    >>> scores(sure, splits=2)
    tensor([4., 4.], dtype=torch.float64)
    """
    count = len(logits)
    logits = logits.double()
    log_p = logits.log_softmax(1)
    found = []
    for i in range(splits):
        part = log_p[i * count // splits : (i + 1) * count // splits]
        p = part.exp()
        # xlogy: a class that is never predicted counts 0, not 0 x infinity
        found.append((p * part - torch.xlogy(p, p.mean(0))).sum(1).mean().exp())
    return torch.stack(found)


def shuffled(rows: Tensor, seed: int) -> Tensor:
    """The rows in a random order, the one that torch-fidelity takes from the same seed."""
    return rows[torch.from_numpy(np.random.RandomState(seed).permutation(len(rows)))]
