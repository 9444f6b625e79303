"""Pictures to look at, and peers held to them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Five smooth images with a little noise, of the kind that networks were trained on: uint8, 5 x 32 x 32 x 3."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32] / 32
    waves = [[np.sin(6 * (a * x + b * y) + c) for c in (0, 1, 2)] for a, b in rng.uniform(-2, 2, (5, 2))]
    values = 128 + 90 * np.array(waves).transpose(0, 2, 3, 1) + rng.normal(0, 12, (5, 32, 32, 3))
    return values.clip(0, 255).round().astype(np.uint8)
