"""LPIPS, held to the package of its authors on the same trunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qpass_evaluators.networks import Lpips, weight_files
from qpass_evaluators.networks import lpips as ours

from qpass.evaluator import EvaluationError


@pytest.fixture(scope="module")
def package():
    """The package's LPIPS: its own heads, and our trunk in place of torchvision's, which would be downloaded."""
    lpips = pytest.importorskip("lpips")
    net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    return net.eval()


@pytest.fixture(scope="module")
def weights():
    return weight_files.read(ours.SHIPPED)


def trunk(package: torch.nn.Module) -> list[torch.nn.Conv2d]:
    return [module for module in package.net.modules() if isinstance(module, torch.nn.Conv2d)]


def test_heads_equal_the_packages(package, weights):
    """To the rounding of fp16, in which ours are stored."""
    for i, head in enumerate(package.lins):
        assert torch.equal(weights[f"lin{i}.weight"], head.model[-1].weight.half().float())


@pytest.mark.parametrize("size", [(32, 32), (31, 64), (64, 64)])
def test_distance_equals_the_packages(package, weights, pictures, size):
    """Within 1e-5, on the same trunk and heads."""
    for i, layer in enumerate(trunk(package), 1):
        layer.weight.data, layer.bias.data = weights[f"conv{i}.weight"], weights[f"conv{i}.bias"]
    for i, head in enumerate(package.lins):
        head.model[-1].weight.data = weights[f"lin{i}.weight"]
    rng = np.random.default_rng(0)
    a = np.resize(pictures, (3, *size, 3))
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1 for images in (a, b))
    with torch.no_grad():
        expected = package(x, y).flatten()
    found = Lpips().distance(a, b)
    assert expected.min() > 0.01
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)


def test_equal_images_are_at_no_distance(pictures):
    """Black ones too, whose features may be all zero."""
    images = np.concatenate([pictures, np.zeros((1, 32, 32, 3), np.uint8)])
    assert torch.equal(Lpips().distance(images, images), torch.zeros(6))


def test_more_noise_is_further_and_batches_do_not_matter(pictures):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, pictures.shape)
    near, far = (np.clip(pictures + s * noise, 0, 255).astype(np.uint8) for s in (5, 40))
    network = Lpips()
    assert (network.distance(pictures, near) < network.distance(pictures, far)).all()
    alone = torch.cat([network.distance(a[None], b[None]) for a, b in zip(pictures, far, strict=True)])
    assert torch.allclose(network.distance(pictures, far), alone, atol=1e-6)


def test_pairs_that_do_not_fit_are_refused(pictures):
    with pytest.raises(EvaluationError, match="must come in pairs"):
        Lpips().distance(pictures, pictures[:2])
    with pytest.raises(EvaluationError, match="at least 31 x 31"):
        Lpips().distance(pictures[:, :30], pictures[:, :30])
    with pytest.raises(EvaluationError, match="uint8"):
        Lpips().distance(pictures, pictures.astype(np.float32))
