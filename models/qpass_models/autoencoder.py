"""What turns latents into images: a diffusers autoencoder's second half, with what its pipelines do around it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from qpass.sampling import to_uint8
from qpass_models.held import on


class Decoder:
    """Latents to uint8 images. The autoencoder is asked for when first needed, and stays as and where it is."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._held: Any = None

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        module = self._on(latents.device)
        return to_uint8(module.decode(unscaled(latents.to(module.dtype), module.config)).sample)

    def _on(self, device: torch.device) -> Any:
        """The autoencoder on a device; in single precision where half overflows, as SDXL's does."""
        if self._held is None or self._held.device != device:
            module = on(self._load(), device)
            if module.dtype == torch.float16 and module.config.get("force_upcast"):
                module = copy.deepcopy(module).float()
            self._held = module
        return self._held


def unscaled(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Latents as the autoencoder has them, from those that the denoiser draws: of unit variance, some by channel."""
    mean, deviation = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:
        mean, deviation = (latents.new_tensor(value).reshape(1, -1, 1, 1) for value in (mean, deviation))
        latents = latents * deviation
    else:
        mean = config.get("shift_factor") or 0.0
    return latents / (config.get("scaling_factor") or 1.0) + mean


def pixel_scale(config: Mapping[str, Any]) -> int:
    """How often an autoencoder of that configuration halves an image, as a factor.

    >>> pixel_scale({"block_out_channels": [128, 256, 512, 512]})
    8
    """
    levels = config.get("block_out_channels") or config.get("encoder_block_out_channels") or [0]
    return int(2 ** (len(levels) - 1))
