"""Feature networks' speed: `tox -e bench -- -k features`; ratios to other tools are in features_speed.py."""

from __future__ import annotations

import numpy as np
import pytest
from qpass_evaluators.networks import Inception, Lpips

COUNT = 16


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("resize", ["pytorch", "tensorflow"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_inception_features(benchmark, images, precision, resize):
    """Sixteen images, weights already read."""
    network = Inception(precision=precision, resize=resize)
    network.features(images)
    found = benchmark(network.features, images)
    benchmark.extra_info["images"] = len(found["pool"])


def test_lpips_distances(benchmark, images):
    """Sixteen pairs."""
    network = Lpips()
    network.distance(images, images[::-1])
    benchmark(network.distance, images, images[::-1])
