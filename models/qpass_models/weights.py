"""Which weight files of a folder are loaded: diffusers and transformers name plain ones, shards and variants alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from qpass.errors import ModelError

_SHARD = r"(?:-\d{5}-of-\d{5})?"  # after the variant; before it in files of older diffusers
_NAME = re.compile(
    rf"(?:diffusion_pytorch_model|pytorch_model|model){_SHARD}(?:\.(?P<variant>[\w-]+?))?{_SHARD}"
    r"\.(?P<ending>safetensors|bin)"
)


@attrs.frozen(kw_only=True)
class Weights:
    """The files, and what `from_pretrained` must be told to take them."""

    variant: str | None
    files: tuple[str, ...]


def choose(where: str, names: Iterable[str]) -> Weights:
    """Of the files in one folder, those to load: plain ones, else the only variant; safetensors before .bin.

    >>> choose("unet", ["model.bin", "model.safetensors", "model.fp16.safetensors"])
    Weights(variant=None, files=('model.safetensors',))
    >>> choose("unet", ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]).variant
    'fp16'
    """
    found = [match for name in sorted(names) if (match := _NAME.fullmatch(name))]
    variants = sorted({match["variant"] for match in found if match["variant"]})
    plain = any(match["variant"] is None for match in found)
    if not plain and len(variants) > 1:
        raise ModelError(
            f"{where!r} has weights only as variants, and more than one, {', '.join(variants)}; give a folder with "
            "one of them, or with plain weights"
        )
    variant = None if plain or not variants else variants[0]
    of_variant = [match for match in found if match["variant"] == variant]
    safe = [match for match in of_variant if match["ending"] == "safetensors"]
    return Weights(variant=variant, files=tuple(match[0] for match in safe or of_variant))


def variant(folder: Path) -> str | None:
    """The variant to ask for in a folder, such as fp16, or None where it has plain weights."""
    return choose(str(folder), (file.name for file in folder.iterdir())).variant
