"""A loaded model in the place of the class it was made from: same call, same config, same output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    StableDiffusionPipeline,
)

import qpass
from qpass.artifact import LoadedModel, save
from qpass.plugins import Catalog

Quantize = Callable[..., Any]
Load = Callable[..., tuple[Any, LoadedModel]]


@pytest.fixture
def load(quantize: Quantize, known: Catalog, tmp_path: Path) -> Load:
    """`load(model, weight, input, dtype)`: the case, and what `qpass.load` makes of its artifact."""

    def make(*row: str) -> tuple[Any, LoadedModel]:
        case = quantize(*row)
        save(case.artifact, tmp_path / "artifact", known)
        return case, qpass.load(tmp_path / "artifact")

    return make


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


TIMES: dict[str, Callable[[int], Any]] = {
    "int": lambda batch: 7,
    "float": lambda batch: 7.0,
    "numpy": lambda batch: np.float64(7),
    "scalar": lambda batch: torch.tensor(7),
    "scalar float64": lambda batch: torch.tensor(7.0, dtype=torch.float64),
    "one": lambda batch: torch.tensor([7]),
    "batch": lambda batch: torch.full((batch,), 7),
    "batch int32": lambda batch: torch.full((batch,), 7, dtype=torch.int32),
    "batch float": lambda batch: torch.full((batch,), 7.0),
}


@pytest.mark.parametrize("form", TIMES)
@pytest.mark.parametrize("model", ["unet", "dit", "ldm"])
def test_a_timestep_in_any_form(load: Load, model: str, form: str) -> None:
    """One timestep given as a number, 0-d or for each sample, as integer or float, gives the same bits."""
    case, loaded = load(model, "int8 channel", "int8 tensor time:4")
    x, _, *cond = case.example(3)
    expected = case.output((x, torch.full((3,), 7), *cond))
    assert torch.equal(loaded.denoise(x, TIMES[form](3), *cond), expected)


def test_a_timestep_keeps_its_format(load: Load) -> None:
    """bfloat16 has no 853, only 852 and 856: a model of bfloat16 is given the float that a scheduler made."""
    _, loaded = load("unet", "int8 channel", "int8 tensor", "bfloat16")
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.denoise(x, torch.tensor(853.0)), loaded.denoise(x, 853))
    assert not torch.equal(loaded.denoise(x, 853), loaded.denoise(x, 852))


def test_each_sample_its_own_timestep(load: Load) -> None:
    """A batch of different timesteps gives each sample what it gets alone, also across time groups."""
    _, loaded = load("unet", "int8 channel", "int8 tensor time:4")
    # of a seed where no value lies on the border of two codes, which the last bit of a batched sum would decide
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([10, 300, 600, 990])
    together = loaded.denoise(x, t)
    for place in range(4):
        alone = loaded.denoise(x[place : place + 1], t[place])
        torch.testing.assert_close(together[place : place + 1], alone, rtol=0, atol=1e-5)


def test_called_like_the_class(load: Load) -> None:
    """By position or by keyword, as an output, as a tuple or by index, the same tensor comes out."""
    case, loaded = load("dit")
    x, t, labels = case.example(2)
    expected = case.output((x, t, labels))
    assert torch.equal(loaded(x, t, labels).sample, expected)
    assert torch.equal(loaded(x, t, labels)[0], expected)
    assert torch.equal(loaded(x, t, labels)["sample"], expected)
    assert torch.equal(loaded(x, timestep=t, class_labels=labels, return_dict=True).sample, expected)
    assert torch.equal(loaded(class_labels=labels, hidden_states=x, timestep=t).sample, expected)
    (alone,) = loaded(x, t, class_labels=labels, return_dict=False)
    assert torch.equal(alone, expected)
    (alone,) = loaded(x, t, labels, None, False)
    assert torch.equal(alone, expected)


def test_outputs_share_a_class(load: Load) -> None:
    """Two calls return outputs of one class, so that calling a model for long leaves nothing behind."""
    case, loaded = load("unet")
    x, t = case.example(2)
    assert type(loaded(x, t)) is type(loaded(x, t))


def test_called_like_stable_diffusion_does(load: Load) -> None:
    """The call in StableDiffusionPipeline's loop, with its keywords that are None, works."""
    case, loaded = load("ldm")
    x, t, text = case.example(2)
    (output,) = loaded(
        x,
        t[0],
        encoder_hidden_states=text,
        timestep_cond=None,
        cross_attention_kwargs=None,
        added_cond_kwargs=None,
        return_dict=False,
    )
    assert torch.equal(output, case.output((x, t[0].expand(2), text)))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (1, {}, "was traced with 'timestep', which this call does not give"),
        (2, {}, "was traced with 'encoder_hidden_states', which this call does not give"),
        (2, {"encoder_hidden_states": None}, "was traced with 'encoder_hidden_states'"),
        (3, {"sample": 1}, "got several values for 'sample'"),
        (3, {"encoder_hidden_state": 1}, "has no argument 'encoder_hidden_state', did you mean 'encoder_hidden"),
        (3, {"class_labels": torch.tensor([1])}, "was traced without class_labels, so this call cannot give it"),
        (3, {"added_cond_kwargs": {"text_embeds": torch.ones(1)}}, "was traced without added_cond_kwargs.text_embeds"),
        (20, {}, "takes at most 13 arguments, sample, timestep, .*; it got 20"),
    ],
)  # fmt: skip
def test_wrong_calls(load: Load, args: int, kwargs: dict[str, Any], message: str) -> None:
    """A call that the original class would refuse, or that was not traced, is a TypeError that says which argument."""
    case, loaded = load("ldm")
    x, t, text = case.example(2)
    given = [x, t, text, *([None] * 20)][:args]
    with pytest.raises(TypeError, match=f"UNet2DConditionModel {message}"):
        loaded(*given, **kwargs)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("ldm", (9, 8), "UNet2DConditionModel was given 9 x 8, and this artifact takes multiples of 2 only"),
        ("dit", (4, 16), "DiTTransformer2DModel was given 4 x 16, and this artifact draws 8 x 8 only"),
    ],
)
def test_sizes_it_was_not_traced_for(load: Load, model: str, size: tuple[int, int], message: str) -> None:
    """They are named, and the way out; 4 x 16 has as many patches as 8 x 8, and would be drawn as that."""
    case, loaded = load(model)
    x, t, last = case.example(2)
    key = {"ldm": "encoder_hidden_states", "dit": "class_labels"}[model]
    assert loaded(x, timestep=t, **{key: last}).sample.shape == x.shape
    with pytest.raises(ValueError, match=message):
        loaded(torch.zeros(2, x.shape[1], *size), timestep=t, **{key: last})


def test_config_dtype_and_device(load: Load) -> None:
    """What pipelines read off a denoiser is there: its config by key and attribute, its dtype and device."""
    case, loaded = load("unet", "int8 channel", "int8 tensor", "bfloat16")
    assert loaded.config.sample_size == loaded.config["sample_size"] == 8
    assert loaded.config.in_channels == 3
    assert not hasattr(loaded.config, "no_such_thing")
    assert loaded.dtype == torch.bfloat16
    assert loaded.device == torch.device("cpu")
    assert not loaded.training
    assert loaded(*case.example(2)).sample.dtype == torch.bfloat16


class InMemory(torch.nn.Module):
    """The quantized graph as it left the passes, in the clothes of a diffusers model."""

    def __init__(self, case: Any, loaded: LoadedModel, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self.config, self.inputs = case.artifact.graph, loaded.config, inputs
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        given = dict(zip(self.inputs, args, strict=False)) | kwargs
        t = torch.as_tensor(given["timestep"]).reshape(-1).expand(len(x))
        output = self.inner(x, t, *(given[name] for name in self.inputs[1:]))
        return _Sample(output) if return_dict else (output,)


class _Sample:
    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


def drawn(pipe: DiffusionPipeline, **options: Any) -> np.ndarray[Any, Any]:
    """Two images, float 0 to 1."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    images: np.ndarray[Any, Any] = pipe(
        generator=generator, num_inference_steps=4, output_type="np", **options
    ).images
    return images


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2)))


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(5)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8).eval()


def check_pipeline(
    pipe: DiffusionPipeline, part: str, case: Any, loaded: LoadedModel, inputs: tuple[str, ...], **options: Any
) -> None:
    """Full precision, the graph in memory, and the loaded model draw alike: the last two to the bit."""
    original = drawn(pipe, **options)
    setattr(pipe, part, InMemory(case, loaded, inputs))
    expected = drawn(pipe, **options)
    setattr(pipe, part, loaded)
    images = drawn(pipe, **options)
    assert images.shape == original.shape
    assert np.array_equal(images, expected)
    assert not np.array_equal(images, original)
    assert psnr(images, original) > 25


def test_ddim_pipeline(load: Load, tmp_path: Path) -> None:
    """`pipe.unet = qpass.load(folder)` draws the quantized graph's images in a DDIMPipeline read from disk."""
    case, loaded = load("unet")
    DDIMPipeline(unet=case.adapter.load(), scheduler=DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    pipe = DDIMPipeline.from_pretrained(tmp_path / "pipe")
    check_pipeline(pipe, "unet", case, loaded, ("timestep",), batch_size=2)


def test_dit_pipeline(load: Load, tmp_path: Path) -> None:
    """`pipe.transformer = qpass.load(folder)` draws the quantized graph's images in a DiTPipeline, with guidance."""
    case, loaded = load("dit-pipeline")
    DiTPipeline(transformer=case.adapter.load(), vae=autoencoder(), scheduler=DDIMScheduler()).save_pretrained(
        tmp_path / "pipe"
    )
    pipe = DiTPipeline.from_pretrained(tmp_path / "pipe")
    check_pipeline(pipe, "transformer", case, loaded, ("timestep", "class_labels"), class_labels=[1, 2])


def test_stable_diffusion_pipeline(load: Load, tmp_path: Path) -> None:
    """`pipe.unet = qpass.load(folder)` draws the quantized graph's images in a StableDiffusionPipeline."""
    import transformers

    case, loaded = load("ldm")
    torch.manual_seed(6)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    pipe = StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=text, tokenizer=None, unet=case.adapter.load(), scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with torch.no_grad():
        states = text(torch.arange(6)[None].repeat(2, 1)).last_hidden_state
    check_pipeline(
        pipe, "unet", case, loaded, ("timestep", "encoder_hidden_states"),
        prompt_embeds=states, negative_prompt_embeds=-states, height=8, width=8,
    )  # fmt: skip
