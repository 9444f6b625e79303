"""The two ways in which images reach Inception's 299 x 299: they look alike, and their FIDs do not compare.

Both take uint8 N x H x W x 3 and give fp32 N x 3 x 299 x 299.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 299


def pytorch(images: Tensor) -> Tensor:
    """pytorch-fid's: bilinear with half-pixel centres, no antialias, on 0..1, then 2 x - 1; equal to the last bit.

    >>> pytorch(torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)).unique()
    tensor([1.])
    """
    planes = images.permute(0, 3, 1, 2).float() / 255  # still channels last in memory: same bits, and faster
    return F.interpolate(planes, size=(SIZE, SIZE), mode="bilinear", align_corners=False).mul_(2).sub_(1)


def tensorflow(images: Tensor) -> Tensor:
    """TensorFlow 1's, inside the graph that ADM and torch-fidelity follow: (x - 128) / 128 after bilinear sampling
    at i H / 299, without half-pixel centres, so that the picture moves by up to half a pixel.

    >>> tensorflow(torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)).unique()
    tensor([0.])
    """
    planes = images.permute(0, 3, 1, 2).contiguous().float()
    # width first: the rows are still few, and each value is computed by the same steps as in TensorFlow's kernel
    low, high, weight = _samples(planes.shape[3], planes.device)
    left = planes[:, :, :, low]
    rows = left + (planes[:, :, :, high] - left) * weight
    low, high, weight = _samples(planes.shape[2], planes.device)
    top = rows[:, :, low]
    return (top + (rows[:, :, high] - top) * weight[:, None]).sub_(128).div_(128)


def _samples(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of 299 positions: the pixel before it, the pixel after it, and how far it is from the first."""
    position = torch.arange(SIZE, device=device) * torch.tensor(length / SIZE, dtype=torch.float32)
    low = position.long()
    return low, (low + 1).clamp(max=length - 1), position - low
