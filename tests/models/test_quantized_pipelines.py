"""Whole pipelines with text: quantized in memory, and drawing with the quantized denoiser in the old one's place."""

from __future__ import annotations

import pickle
import shutil

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import Simulate

import qpass
from qpass.errors import ArtifactError
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


@pytest.fixture
def artifact(tmp_path):
    """A run of a Stable Diffusion pipeline in memory, and the pipeline in a folder of its own."""
    pipe = pipelines.stable_diffusion()
    pipe.save_pretrained(tmp_path / "pipeline")
    qpass.quantize(
        pipe,
        [Assign(), Simulate(weight=AbsMax(), input=AbsMax())],
        sampling=Sampling(steps=2, batch=2, prompts=("a b",), guidance=3.0),
        calibration=UniformSteps(samples=2, steps=2),
        out=tmp_path / "run",
    )
    return tmp_path


def test_an_artifact_is_loaded_in_place_of_the_denoiser(artifact):
    """The original's weights are never read; drawing is what it is with the denoiser put there by hand."""
    model = qpass.load(artifact / "run")
    shutil.rmtree(artifact / "pipeline" / "unet")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        artifact / "pipeline", unet=model, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    other = pipelines.stable_diffusion()
    other.set_progress_bar_config(disable=True)
    other.unet = model
    assert np.array_equal(draw(pipe), draw(other))
    with pytest.raises(ArtifactError, match="saved as its artifact, the folder that it was loaded from"):
        pipe.save_pretrained(artifact / "again")
    again = pickle.loads(pickle.dumps(model))
    x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 7, model.config.cross_attention_dim)
    assert torch.equal(again.denoise(x, 3, text), model.denoise(x, 3, text))


def test_a_pipeline_in_half_precision(artifact):
    """Its other parts are cast, the quantized one stays as it was made; what passes between them fits."""
    model = qpass.load(artifact / "run")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pipe = pipelines.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = model
    whole = draw(pipe)
    with pytest.warns(UserWarning, match=r"keeps its number formats: it stays in torch\.float32"):
        pipe.to(torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype
    assert 0 < np.abs(draw(pipe) - whole).mean() < 0.05
    x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 7, model.config.cross_attention_dim)
    half = model(x.bfloat16(), 3, text.bfloat16()).sample
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, model(x, 3, text).sample.bfloat16())
