"""PSNR and SSIM, held to arithmetic by hand and to the definition written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from qpass_evaluators.similarity import psnr, ssim


def pictures(seed: int, size: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def ssim_by_loops(x: np.ndarray, y: np.ndarray, size: int) -> float:
    """Wang et al. 2004, equations 13 to 17, one window position at a time."""
    reach = size // 2
    window = np.array(
        [
            [math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-reach, reach + 1)]
            for i in range(-reach, reach + 1)
        ]
    )
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    channels = []
    for c in range(x.shape[2]):
        values = []
        for top in range(x.shape[0] - size + 1):
            for left in range(x.shape[1] - size + 1):
                p = x[top : top + size, left : left + size, c].astype(float)
                q = y[top : top + size, left : left + size, c].astype(float)
                mu_p, mu_q = (window * p).sum(), (window * q).sum()
                var_p = (window * (p - mu_p) ** 2).sum()
                var_q = (window * (q - mu_q) ** 2).sum()
                cov = (window * (p - mu_p) * (q - mu_q)).sum()
                above = (2 * mu_p * mu_q + c1) * (2 * cov + c2)
                values.append(above / ((mu_p**2 + mu_q**2 + c1) * (var_p + var_q + c2)))
        channels.append(np.mean(values))
    return float(np.mean(channels))


@pytest.mark.parametrize(
    ("shape", "window"), [((16, 19, 3), 11), ((12, 12, 1), 11), ((8, 9, 3), 7), ((7, 5, 3), 5)]
)
def test_ssim_is_the_definition(shape: tuple[int, ...], window: int) -> None:
    """SSIM equals its definition written as loops; below 11 pixels the window is the largest odd one that fits."""
    a = pictures(0, (3, *shape))
    noise = np.random.default_rng(1).normal(0, 40, a.shape)
    b = np.clip(a + noise, 0, 255).astype(np.uint8)
    expected = [ssim_by_loops(x, y, window) for x, y in zip(a, b, strict=True)]
    assert 0.3 < expected[0] < 0.99
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-10)


def test_ssim_of_equal_images_is_one() -> None:
    """An image is wholly like itself."""
    a = pictures(2, (2, 16, 16, 3))
    np.testing.assert_array_equal(ssim(a, a), [1.0, 1.0])


def test_psnr_by_hand() -> None:
    """A constant error of 5 gives 20 log10(255 / 5); the MSE is taken over all images before the logarithm."""
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[0] += 5
    b[1] -= 5
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / 5), abs=1e-12)
    b[1] = a[1]
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 12.5), abs=1e-12)


def test_psnr_of_equal_images_is_infinite_and_differences_do_not_wrap() -> None:
    """Equal images have infinite PSNR, black against white has 0 dB: uint8 differences do not wrap round."""
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr(white, white) == math.inf
    assert psnr(black, white) == psnr(white, black) == 0.0
