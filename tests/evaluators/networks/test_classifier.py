"""The CIFAR-10 classifier as a feature network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qpass_evaluators.networks import Classifier, classifier
from safetensors.torch import save_file

from qpass.evaluator import EvaluationError


@pytest.fixture
def trained(tmp_path):
    """A file of weights: random, with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    net = classifier.build()
    net(torch.randn(8, 3, 32, 32))
    file = tmp_path / "classifier.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}, file)
    return net.eval(), Classifier(weights=str(file))


def test_logits_are_the_networks(trained, pictures):
    """As stored in fp16, and the same from `pool` through the last layer."""
    net, network = trained
    with torch.no_grad():
        expected = net(classifier.normalise(torch.from_numpy(pictures)))
    found = network.features(pictures)
    assert {name: rows.shape[1] for name, rows in found.items()} == dict(network.dimensions())
    assert torch.allclose(found["logits"], expected, atol=2e-2 * float(expected.abs().max()))


def test_normalise_takes_images_to_mean_and_deviation():
    """By hand: (128 / 255 - 0.4914) / 0.2470 for red."""
    x = classifier.normalise(torch.full((1, 32, 32, 3), 128, dtype=torch.uint8))
    assert float(x[0, 0, 0, 0]) == pytest.approx((128 / 255 - 0.4914) / 0.2470, abs=1e-6)


def test_small_enough_to_ship():
    assert sum(p.numel() for p in classifier.build().parameters()) * 2 < 3e6


def test_without_weights_it_says_how_to_get_them(tmp_path, pictures):
    with pytest.raises(EvaluationError, match="no file; train them with"):
        Classifier(weights=str(tmp_path / "none.safetensors")).features(pictures)


def test_another_image_size_is_refused(trained):
    with pytest.raises(EvaluationError, match="must be 32 x 32, not 64 x 32"):
        trained[1].features(np.zeros((1, 64, 32, 3), np.uint8))
