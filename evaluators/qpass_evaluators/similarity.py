"""How alike two stacks of images are, uint8, N x H x W x C: PSNR and SSIM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Pictures = np.ndarray[Any, Any]
PEAK = 255.0


def psnr(a: Pictures, b: Pictures) -> float:
    """10 log10(255² / MSE) in dB, where the MSE is over all values of all images; infinite when they are equal.

    >>> round(psnr(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)), 1)
    0.0
    """
    # a difference of two uint8 squares to less than 2^16, so the sum is exact in int64
    error = sum(int(((x.astype(np.int64) - y) ** 2).sum()) for x, y in zip(a, b, strict=True)) / a.size
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def ssim(a: Pictures, b: Pictures, size: int = 11, sigma: float = 1.5) -> Pictures:
    """SSIM of each pair of images (N,): equation 13 of Wang et al. (IEEE TIP 2004), as its section III-C sets it.

    Gaussian window of `size` x `size`, K1 = 0.01, K2 = 0.03, averaged over the positions where the window lies
    wholly inside the image, then over channels. An image smaller than the window gets the largest odd window that
    fits.

    >>> ssim(np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8))
    array([1., 1.])
    """
    kernel = _gaussian(window(a.shape[1], a.shape[2], size), sigma)
    return np.array([_ssim(_planes(x), _planes(y), kernel) for x, y in zip(a, b, strict=True)])


def window(height: int, width: int, size: int = 11) -> int:
    """The side of the window that `ssim` takes on images of that size.

    >>> window(32, 32), window(8, 32)
    (11, 7)
    """
    fits = min(size, height, width)
    return fits - (fits + 1) % 2


def _ssim(x: Tensor, y: Tensor, kernel: Tensor) -> float:
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mu_x, mu_y = _blur(x, kernel), _blur(y, kernel)
    var_x = _blur(x * x, kernel) - mu_x**2
    var_y = _blur(y * y, kernel) - mu_y**2
    cov = _blur(x * y, kernel) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _gaussian(size: int, sigma: float) -> Tensor:
    weights = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def _planes(image: Pictures) -> Tensor:
    """H x W x C as C x 1 x H x W, in float64."""
    return torch.from_numpy(image).double().permute(2, 0, 1).unsqueeze(1)


def _blur(planes: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(planes, kernel.reshape(1, 1, -1, 1)), kernel.reshape(1, 1, 1, -1))
