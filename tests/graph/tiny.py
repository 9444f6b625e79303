"""Tiny seeded models of every class the trace is held to, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from qpass_models import examples, signatures

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": (
        "UNet2DModel",
        {
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
        },
    ),
    "unet-classes": (
        "UNet2DModel",
        {
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
            "attention_head_dim": 8,
            "resnet_time_scale_shift": "scale_shift",
            "num_class_embeds": 10,
        },
    ),
    "ldm": (
        "UNet2DConditionModel",
        {
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 24,
            "attention_head_dim": 2,
        },
    ),
    "sdxl": (
        "UNet2DConditionModel",
        {
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 24,
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "norm_num_groups": 1,
            "num_embeds_ada_norm": 10,
        },
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "use_additional_conditions": False,
        },
    ),
    "pixart-sizes": (
        "PixArtTransformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 18,
            "cross_attention_dim": 36,
            "caption_channels": 24,
            "use_additional_conditions": True,
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "in_channels": 4,
            "out_channels": 4,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
    ),
    "flux": (
        "FluxTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 20,
            "axes_dims_rope": (4, 6, 6),
            "guidance_embeds": True,
        },
    ),
}
"""Name, diffusers class, configuration. `sample_size` of Flux is ours: the class itself has none."""

OPTIONAL = {"pixart": ("encoder_attention_mask",)}
RESIZABLE = ("unet", "unet-classes", "ldm", "sdxl", "flux")
NAMES = (*CONFIGS, "vit", "timm-dit")


@attrs.frozen(kw_only=True, eq=False)
class Tiny:
    """A model in eval mode, how to call it, and how to make its inputs."""

    name: str
    module: torch.nn.Module
    call: Callable[..., Any] | None
    dynamic: tuple[tuple[int, ...], ...] | None
    example: Callable[..., tuple[torch.Tensor, ...]]

    def eager(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = (self.call or torch.nn.Module.__call__)(self.module, *inputs)
        return out


def make(name: str, dtype: torch.dtype = torch.float32) -> Tiny:
    """The tiny model of that name, with every weight random (diffusers starts some of them at zero)."""
    if name == "vit":
        return _vit(dtype)
    return _timm_dit(dtype) if name == "timm-dit" else _diffusers(name, dtype)


def _diffusers(name: str, dtype: torch.dtype) -> Tiny:
    import diffusers

    class_name, config = CONFIGS[name]
    own = {k: v for k, v in config.items() if not (name == "flux" and k == "sample_size")}
    torch.manual_seed(0)
    module = getattr(diffusers, class_name)(**own)
    sig = signatures.signature(class_name, module.config, optional=OPTIONAL.get(name, ()))
    full = {**module.config, "sample_size": config["sample_size"]}

    def example(batch: int, seed: int = 0, size: examples.Size | None = None) -> tuple[torch.Tensor, ...]:
        return signatures.example(sig, full, batch, seed, dtype, size=size)

    return Tiny(
        name=name,
        module=_awake(module, dtype),
        call=partial(signatures.call, sig),
        dynamic=sig.dynamic,
        example=example,
    )


def _vit(dtype: torch.dtype) -> Tiny:
    import timm

    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=10
    )

    def example(batch: int, seed: int = 0, size: examples.Size | None = None) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, 3, 32, 32, generator=generator).to(dtype),)

    return Tiny(name="vit", module=_awake(module, dtype), call=None, dynamic=None, example=example)


def _timm_dit(dtype: torch.dtype) -> Tiny:
    from qpass_models.dit import DiT
    from qpass_models.dit_config import DiTConfig

    torch.manual_seed(0)
    config = DiTConfig(depth=2, width=32, heads=2, patch_size=2, input_size=8, num_classes=10)

    def example(batch: int, seed: int = 0, size: examples.Size | None = None) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, config.in_channels, 8, 8, generator=generator).to(dtype)
        t, y = (torch.randint(0, high, (batch,), generator=generator) for high in (1000, config.num_classes + 1))
        return x, t, y

    return Tiny(name="timm-dit", module=_awake(DiT(config), dtype), call=None, dynamic=None, example=example)


def _awake(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return (module if dtype is torch.float32 else module.to(dtype)).eval()
