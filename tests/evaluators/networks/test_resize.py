"""Both resizes, held to the tools they stand for, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qpass_evaluators.networks import resize

SIZES = [(32, 32), (64, 48), (299, 299), (400, 512), (1, 1)]


def noise(height: int, width: int) -> torch.Tensor:
    values = np.random.default_rng(height).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values)


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_pytorch_fid(size):
    """To the last bit, what pytorch-fid's network sees after its own data set's ToTensor."""
    inception = pytest.importorskip("pytorch_fid.inception")
    from torchvision.transforms import ToTensor

    images = noise(*size)
    seen = []
    peer = object.__new__(inception.InceptionV3)
    torch.nn.Module.__init__(peer)
    peer.resize_input = peer.normalize_input = True
    peer.output_blocks, peer.last_needed_block = [0], 0
    peer.blocks = [lambda x: seen.append(x) or x]
    peer(torch.stack([ToTensor()(image.numpy()) for image in images]))
    assert torch.equal(resize.pytorch(images), seen[0])


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_torch_fidelity(size):
    """To the last bit, torch-fidelity's copy of TensorFlow 1's kernel, and the shift and scale after it."""
    peer = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = noise(*size)
    planes = images.permute(0, 3, 1, 2).float()
    expected = peer.interpolate_bilinear_2d_like_tensorflow1x(planes, size=(299, 299), align_corners=False)
    assert torch.equal(resize.tensorflow(images), (expected - 128) / 128)


def test_tensorflow_by_its_definition():
    """Value i samples at i H / 299, by hand on a ramp: 32 columns 0, 8, .. 248 give min(8 i 32/299, 248)."""
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 32, 1).expand(1, 32, 32, 3)
    expected = (torch.arange(299) * 32 / 299 * 8).clamp(max=248)
    assert torch.allclose(resize.tensorflow(ramp)[0, 0, 7] * 128 + 128, expected, atol=1e-4)


def test_the_two_differ():
    """At 32 x 32 they lie half a pixel apart, so they must never be compared."""
    images = noise(32, 32)
    assert (resize.pytorch(images) - resize.tensorflow(images)).abs().mean() > 0.1
