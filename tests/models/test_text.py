"""Sampling with prompts: our images are those of the pipelines' own loops, from the same noise."""

from __future__ import annotations

import importlib.util
import inspect
import json

import attrs
import diffusers
import numpy as np
import pipelines
import pytest
import torch
from qpass_evaluators.classifier import ClassAccuracy
from qpass_models.diffusers_model import DiffusersModel
from qpass_models.in_memory import InMemory
from qpass_models.text import length

from qpass.errors import ModelError, RecipeError
from qpass.evaluator import EvaluationError, refuse
from qpass.sampling import Sampling, generator

pytest.importorskip("transformers")
PROMPTS = ("a red cat", "two blue birds on a roof")


def draw(adapter, sampling, count=3):
    """Images by the eager model in our loop."""
    module = adapter.load()
    with torch.no_grad():
        batches = adapter.sample(
            lambda *inputs: adapter.call(module, *inputs),
            seed=0,
            count=count,
            sampling=sampling,
            device=torch.device("cpu"),
        )
        return torch.cat(list(batches)).numpy()


def theirs(folder, shape, prompts, **options):
    """Images by the pipeline, from our noise, as uint8 rounded to nearest."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.stack(
        [torch.randn(shape, generator=generator(0, "evaluation", i)) for i in range(len(prompts))]
    )
    images = pipe(prompt=list(prompts), latents=latents, output_type="np", height=16, width=16, **options).images
    return (images * 255).round().astype(np.uint8)


@pytest.mark.parametrize("negative", ["", "grey"])
@pytest.mark.parametrize("name", pipelines.TEXT)
def test_equals_the_pipeline(name, negative, pipeline_folder):
    """Image i is of prompt i modulo two; guidance 7.5; at most one level of 255 apart from diffusers' own."""
    _, scheduler, call = pipelines.TEXT[name]
    folder = pipeline_folder(name)
    adapter = DiffusersModel(path=str(folder))
    assert adapter.cannot_sample() is None
    if negative and name != "flux":
        call = {**call, "negative_prompt": [negative] * 3}
    sampling = Sampling(
        steps=4,
        guidance=7.5,
        prompts=PROMPTS,
        negative_prompt=negative if name != "flux" else "",
        batch=2,
        **scheduler,
    )
    ours = draw(adapter, sampling)
    shape = adapter.sampler().shape
    assert adapter.sampler().size == (16, 16)
    expected = theirs(
        folder, shape, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], num_inference_steps=4, guidance_scale=7.5, **call
    )
    assert ours.shape == expected.shape == (3, 16, 16, 3)
    assert len(np.unique(ours)) > 20  # there is something to see
    assert not np.array_equal(ours[0], ours[1])
    assert np.abs(ours.astype(int) - expected).max() <= 1
    other = draw(adapter, attrs.evolve(sampling, guidance=1.0, negative_prompt=""))
    assert np.abs(ours.astype(int) - other).max() > 1


def test_a_pipeline_in_memory_draws_the_same(pipeline_folder):
    """Handed over in Python, its own encoders encode; the images are those of the folder."""
    folder = pipeline_folder("stable-diffusion")
    sampling = Sampling(steps=2, guidance=3.0, prompts=PROMPTS)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    adapter = InMemory.adopt(pipe)
    assert adapter.cannot_sample() is None
    assert np.array_equal(draw(adapter, sampling), draw(DiffusersModel(path=str(folder)), sampling))


def test_encoders_are_loaded_once(pipeline_folder, monkeypatch):
    """However often it is sampled, and asked for its sampler; other prompts are encoded anew."""
    from qpass_models import diffusers_model

    loads = []
    real = diffusers_model.load_encoders
    monkeypatch.setattr(diffusers_model, "load_encoders", lambda *args: loads.append(1) or real(*args))
    adapter = DiffusersModel(path=str(pipeline_folder("stable-diffusion")))
    sampling = Sampling(steps=1, guidance=2.0, prompts=PROMPTS)
    for _ in range(2):
        draw(adapter, sampling)
    assert len(loads) == 1
    draw(adapter, attrs.evolve(sampling, prompts=("a dog",)))
    assert len(loads) == 2


def test_prompts_that_are_missing_or_not_wanted(pipeline_folder, unet_folder):
    """A model of text needs some; another one takes none."""
    adapter = DiffusersModel(path=str(pipeline_folder("stable-diffusion")))
    with pytest.raises(RecipeError, match=r'give prompts = \["..."\] in \[sampling\], or a file'):
        adapter.check_sampling(Sampling())
    adapter.check_sampling(Sampling(prompts=("a",)))
    with pytest.raises(RecipeError, match="this model takes no text; leave prompts"):
        DiffusersModel(path=str(unet_folder)).check_sampling(Sampling(prompts=("a",)))


def test_a_file_of_prompts(tmp_path):
    """One a line; from then on the recipe holds the prompts themselves, and needs the file no more."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red cat\n\n  two birds \n", encoding="utf-8")
    assert Sampling(prompts=str(file)).prompts == ("a red cat", "two birds")
    assert Sampling(prompts=("kept as it is ",)).prompts == ("kept as it is ",)
    file.write_text("\n")
    with pytest.raises(RecipeError, match="holds no prompt"):
        Sampling(prompts=str(file))
    with pytest.raises(RecipeError, match=r"nowhere.txt' cannot be read .*; give a text file"):
        Sampling(prompts=str(tmp_path / "nowhere.txt"))


def test_without_transformers(pipeline_folder, monkeypatch):
    """The one command that brings it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "transformers" else find(n, *a))
    adapter = DiffusersModel(path=str(pipeline_folder("stable-diffusion")))
    assert adapter.cannot_sample().endswith("pip install 'qpass[text]'")


@pytest.mark.parametrize("name", [*pipelines.TEXT, "imagenet-ldm4"])
def test_a_call_is_measured_on_what_sampling_gives(name, pipeline_folder):
    """Every input has the shape that it has while images are drawn, where the example's text is of 7 tokens."""
    adapter = DiffusersModel(path=str(pipeline_folder(name)))
    seen = []

    def denoise(*inputs):
        seen.append([tuple(part.shape) for part in inputs[2:]])
        return torch.zeros_like(inputs[0])

    sampling = Sampling(steps=1, prompts=() if name == "imagenet-ldm4" else PROMPTS, batch=2)
    scheduler = pipelines.TEXT[name][1] if name in pipelines.TEXT else {}
    list(
        adapter.sample(
            denoise, seed=0, count=2, sampling=attrs.evolve(sampling, **scheduler), device=torch.device("cpu")
        )
    )
    x, t, *rest = adapter.workload(2)
    # CLIP's texts are of 77 tokens, those of the tiny pipelines' CLIPs of 16
    less = 77 - 16 if name.startswith("stable-diffusion") else 0
    for part, shape in zip(rest, seen[0], strict=True):
        assert part.shape == ((2, shape[1] + less, shape[2]) if len(shape) == 3 else shape)
    assert [part.shape[1] for part in adapter.example(2)[2:] if part.ndim == 3] == [7]
    assert x.shape == adapter.example(2)[0].shape
    assert len(t) == 2


def test_how_long_a_text_is_without_its_pipeline(pipeline_folder):
    """A UNet alone takes CLIP's 77 tokens; PixArt-Sigma's pipeline makes 300 and PixArt-Alpha's 120."""
    adapter = DiffusersModel(path=str(pipeline_folder("stable-diffusion") / "unet"))
    assert adapter.workload(1)[2].shape[1] == 77
    for pipeline in (diffusers.PixArtAlphaPipeline, diffusers.PixArtSigmaPipeline):
        theirs = inspect.signature(pipeline.encode_prompt).parameters["max_sequence_length"].default
        assert length(pipeline.__name__, "PixArtTransformer2DModel") == theirs


@pytest.mark.parametrize("name", ["stable-diffusion", "imagenet-ldm4"])
def test_an_input_that_no_encoder_makes(name, pipeline_folder):
    """A UNet may take a mask of the text, which neither Stable Diffusion's pipeline nor a class embedding makes."""
    adapter = DiffusersModel(path=str(pipeline_folder(name)), optional=("encoder_attention_mask",))
    source = "StableDiffusionPipeline" if name == "stable-diffusion" else "its class embedding"
    reason = adapter.cannot_sample()
    assert reason.startswith(f"it is to be given encoder_attention_mask, which {source} does not make; leave out")
    with pytest.raises(ModelError, match="encoder_attention_mask"):
        draw(adapter, Sampling(steps=1, prompts=PROMPTS))
    assert attrs.evolve(adapter, optional=()).cannot_sample() is None


def test_a_denoiser_alone_has_no_text(pipeline_folder):
    """Its folder inside the pipeline, given by itself, is quantized but not sampled."""
    adapter = DiffusersModel(path=str(pipeline_folder("stable-diffusion") / "unet"))
    assert "come from a text encoder, and none that qpass knows lies beside it" in adapter.cannot_sample()


def test_encoders_that_are_cut_short(pipeline_folder, tmp_path):
    """A folder with a text encoder that cannot be read says which, and what to do."""
    import shutil

    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder("stable-diffusion"), folder)
    weights = folder / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"the text encoders in .* cannot be loaded"):
        draw(DiffusersModel(path=str(folder)), Sampling(prompts=PROMPTS, steps=1))


def test_the_fingerprint_knows_the_text_encoder(pipeline_folder, tmp_path):
    """Other encoders draw other images, so nothing made with them is kept."""
    import shutil

    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder("stable-diffusion"), folder)
    before = DiffusersModel(path=str(folder)).fingerprint()
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "gelu"}))
    assert DiffusersModel(path=str(folder)).fingerprint() != before


def test_has_no_classes_of_cifar10(pipeline_folder):
    """The evaluator that needs them says so, and asks for no prompts."""
    adapter = DiffusersModel(path=str(pipeline_folder("stable-diffusion")))
    with pytest.raises(EvaluationError, match="needs a model of CIFAR-10's ten classes, and 'diffusers' draws"):
        refuse(ClassAccuracy(), adapter)
