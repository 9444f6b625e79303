"""Folders of older diffusers: DiT and PixArt under one class, told apart by the norm in their configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

LEGACY = "Transformer2DModel"
# as diffusers' own loader has it
BY_NORM = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


def modern(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the class that diffusers makes of it today, without what that class does not take.

    >>> dict(modern({"_class_name": "UNet2DModel", "norm_type": "ada_norm_zero"}))
    {'_class_name': 'UNet2DModel', 'norm_type': 'ada_norm_zero'}
    """
    name = BY_NORM.get(str(config.get("norm_type"))) if config.get("_class_name") == LEGACY else None
    if name is None:
        return config
    import diffusers

    taken = inspect.signature(getattr(diffusers, name).__init__).parameters
    kept = {key: value for key, value in config.items() if key in taken or key.startswith("_")}
    return {**kept, "_class_name": name}
