"""Whole pipelines with text: quantized in memory, and drawing with the quantized denoiser in the old one's place."""

from __future__ import annotations

import numpy as np
import pipelines
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import Simulate

import qpass
from qpass.sampling import Sampling

pytest.importorskip("transformers")


def draw(pipe, **options):
    """One image in two steps, float 0 to 1."""
    source = torch.Generator().manual_seed(0)
    return pipe(
        "a b", num_inference_steps=2, height=16, width=16, generator=source, output_type="np", **options
    ).images


@pytest.mark.parametrize("name", pipelines.TEXT)
def test_the_quantized_denoiser_takes_its_place(name):
    """`pipe.unet = quantized.model`, or the transformer: the pipeline asks it for all it wants, and draws alike."""
    make, scheduler, options = pipelines.TEXT[name]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    original = draw(pipe, **options)
    quantized = qpass.quantize(
        pipe,
        [Assign(), Simulate(weight=AbsMax(), input=AbsMax())],
        sampling=Sampling(steps=2, batch=2, prompts=("a b",), guidance=3.0, **scheduler),
        calibration=UniformSteps(samples=2, steps=2),
    )
    setattr(pipe, "unet" if hasattr(pipe, "unet") else "transformer", quantized.model)
    images = draw(pipe, **options)
    assert images.shape == original.shape == (1, 16, 16, 3)
    assert 0 < np.abs(images - original).mean() < 0.03
