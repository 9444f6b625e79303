"""Prompts as inputs of a denoiser, by the text encoders of its pipeline and the pipeline's own `encode_prompt`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from qpass.errors import ModelError
from qpass_models.diffusers_folder import TEXTS, read_json
from qpass_models.weights import variant

# what `encode_prompt` of each pipeline returns, as inputs of its denoiser; "-" marks those of the negative prompt
_RETURNS: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("encoder_hidden_states", "-encoder_hidden_states"),
    "StableDiffusionXLPipeline": (
        "encoder_hidden_states",
        "-encoder_hidden_states",
        "added_cond_kwargs.text_embeds",
        "-added_cond_kwargs.text_embeds",
    ),
    **dict.fromkeys(
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        ("encoder_hidden_states", "encoder_attention_mask", "-encoder_hidden_states", "-encoder_attention_mask"),
    ),
    "StableDiffusion3Pipeline": (
        "encoder_hidden_states",
        "-encoder_hidden_states",
        "pooled_projections",
        "-pooled_projections",
    ),
    "FluxPipeline": ("encoder_hidden_states", "pooled_projections", "txt_ids"),
}
# how long the text is that each of them makes, and that of a denoiser without a pipeline
_LENGTHS = {
    "StableDiffusionPipeline": 77,
    "StableDiffusionXLPipeline": 77,
    "PixArtAlphaPipeline": 120,
    "PixArtSigmaPipeline": 300,
    "StableDiffusion3Pipeline": 77 + 256,  # by its CLIPs, and by its T5
    "FluxPipeline": 512,
    "UNet2DConditionModel": 77,
    "PixArtTransformer2DModel": 120,
    "SD3Transformer2DModel": 77 + 256,
    "FluxTransformer2DModel": 512,
}
_NOT_NEEDED = ("unet", "transformer", "vae", "scheduler", "safety_checker", "feature_extractor", "image_encoder")


@attrs.frozen(kw_only=True, eq=False)
class Encoded:
    """Tensors by the name of the input they are for: one row for each prompt, and one of the negative prompt.

    `empty` has nothing where the pipeline does not guide by a second call.
    """

    given: Mapping[str, Tensor]
    empty: Mapping[str, Tensor]


class TextEncoders:
    """A pipeline's text encoders: loaded when prompts come, gone when they are encoded; the result is kept.

    `pipeline` is the name of its class, and `gives` the inputs that are made of a prompt.
    """

    def __init__(self, pipeline: str, load: Callable[[], Any]) -> None:
        self.pipeline = pipeline
        self.gives = tuple(name for name in _RETURNS.get(pipeline, ()) if not name.startswith("-"))
        self._load = load
        self._kept: tuple[tuple[Sequence[str], str], Encoded] | None = None

    def __call__(self, prompts: Sequence[str], negative: str) -> Encoded:
        """Encode, unless the same was asked last."""
        if self._kept is None or self._kept[0] != (prompts, negative):
            self._kept = ((prompts, negative), encode(self._load(), prompts, negative))
        return self._kept[1]


def known(pipeline: str) -> bool:
    """Whether prompts can be encoded for a pipeline class."""
    return pipeline in _RETURNS


def length(pipeline: str, denoiser: str) -> int:
    """Tokens in a text as the pipeline makes it, or as the denoiser's own does: PixArt-Alpha's, where it is PixArt.

    >>> length("PixArtSigmaPipeline", "PixArtTransformer2DModel"), length("", "UNet2DConditionModel")
    (300, 77)
    """
    return _LENGTHS.get(pipeline) or _LENGTHS.get(denoiser, 77)


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str], negative: str) -> Encoded:
    """Each prompt by itself, so that the result depends on nothing else in the list."""
    names = _RETURNS[type(pipe).__name__]
    rows = [dict(zip(names, _encode_one(pipe, prompt, negative), strict=True)) for prompt in prompts]
    plain = [name for name in names if not name.startswith("-")]
    return Encoded(
        given={n: rows[0][n] if n == "txt_ids" else torch.cat([row[n] for row in rows]).cpu() for n in plain},
        empty={name[1:]: rows[0][name].cpu() for name in names if name.startswith("-")},
    )


def _encode_one(pipe: Any, prompt: str, negative: str) -> Sequence[Tensor]:
    options = {
        "prompt": [prompt],
        "prompt_2": None,
        "prompt_3": None,
        "device": pipe.device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True,
    }
    if negative:  # without one, each pipeline has its own idea of what is empty
        options["negative_prompt"] = [negative]
    taken = inspect.signature(pipe.encode_prompt).parameters
    result: Sequence[Tensor] = pipe.encode_prompt(**{k: v for k, v in options.items() if k in taken})
    return result


def needs_transformers() -> str | None:
    """The way out where the library of text encoders is missing."""
    if importlib.util.find_spec("transformers") is None:
        return "its text encoders need transformers, which is not installed; pip install 'qpass[text]'"
    return None


def load_encoders(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline in a folder with its tokenizers and text encoders, and without all that is larger."""
    import diffusers
    from diffusers.utils import logging

    if reason := needs_transformers():
        raise ModelError(f"{str(folder)!r}: {reason}")
    cls = getattr(diffusers, str(read_json(folder / "model_index.json")["_class_name"]))
    taken = inspect.signature(cls.__init__).parameters
    absent: dict[str, Any] = {name: None for name in _NOT_NEEDED if name in taken}
    if "requires_safety_checker" in taken:
        absent["requires_safety_checker"] = False
    which = _variant(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        return cls.from_pretrained(folder, local_files_only=True, torch_dtype=dtype, variant=which, **absent)
    except (
        Exception
    ) as error:  # diffusers and transformers raise OSError, ValueError, SafetensorError, RuntimeError
        first = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the text encoders in {str(folder)!r} cannot be loaded: {first}; fetch the folder again, it may be "
            "cut short"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _variant(pipeline: Path) -> str | None:
    """The one that an encoder lacks plain weights without; diffusers takes one name for all that have it."""
    encoders = [pipeline / name for name in TEXTS if (pipeline / name / "config.json").is_file()]
    named = {name for encoder in encoders if (name := variant(encoder))}
    if len(named) > 1:
        raise ModelError(
            f"the text encoders in {str(pipeline)!r} have weights only as different variants, "
            f"{', '.join(sorted(named))}; give a folder where all have the same, or plain weights"
        )
    return next(iter(named), None)
