"""What many tests share: the plugins, and one tiny real UNet in a folder that diffusers wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `thumbnail`, which serves several folders


@pytest.fixture(scope="session")
def catalog():
    """Every installed plugin."""
    from qpass.plugins import catalog

    return catalog()


@pytest.fixture(scope="session")
def unet_folder(tmp_path_factory):
    """A UNet2DModel of 8x8 images with attention, seeded, and its noise schedule."""
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("unet")
    UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).save_pretrained(folder)
    DDIMScheduler(beta_schedule="linear").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def traced(unet_folder):
    """The adapter of that UNet and its graph. Never rewrite it: deep-copy first."""
    from qpass_models.diffusers_model import DiffusersModel

    from qpass.graph import trace

    adapter = DiffusersModel(path=str(unet_folder))
    return adapter, trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())


@pytest.fixture
def context(traced, catalog):
    """A context for passes on that UNet, with a small calibration set."""
    from qpass_passes.calibration.uniform_steps import UniformSteps

    from qpass.manager import PassContext
    from qpass.sampling import Sampling

    adapter, graph = traced
    return PassContext(
        model=adapter,
        reference=graph,
        sampling=Sampling(steps=4, batch=4),
        calibration=UniformSteps(samples=8, steps=4),
        catalog=catalog,
    )


@pytest.fixture
def thumbnail(monkeypatch):
    """Evaluators that look through Inception look through a thumbnail; what it is shown is listed here."""
    from qpass_evaluators.inception_score import InceptionScore
    from qpass_evaluators.through_inception import InceptionEvaluator
    from thumbnail import SEEN, Thumbnail

    def network(self):
        return Thumbnail(resize=self.resize, precision=self.precision)

    monkeypatch.setattr(InceptionEvaluator, "network", network)
    monkeypatch.setattr(InceptionScore, "network", network)
    SEEN.clear()
    return SEEN


@pytest.fixture
def photos(tmp_path):
    """Writes an .npz of seeded images whose colours vary; returns its path."""

    def write(name, count, seed=0, size=8):
        source = np.random.default_rng(seed)
        base = source.integers(40, 200, (count, 1, 1, 3))
        images = (base + source.integers(-40, 40, (count, size, size, 3))).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
        return tmp_path / f"{name}.npz"

    return write
