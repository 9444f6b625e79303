"""Seeded random inputs of the right shapes for a signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qpass.errors import ModelError

if TYPE_CHECKING:
    import torch

    from qpass_models.signatures import Signature

Config = Mapping[str, Any]
Size = int | tuple[int, int]

TOKENS = 7  # length of the text in an example, which is short as traces hold for every length
_UNBATCHED = ("img_ids", "txt_ids")


def example(
    signature: Signature,
    config: Config,
    batch: int = 2,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    size: Size | None = None,
    tokens: int = TOKENS,
) -> tuple[torch.Tensor, ...]:
    """Seeded random inputs of the right shapes. The same seed gives the same values in every dtype.

    `size` is the height and width of x before patching (default: the configuration's own `sample_size`), `tokens`
    the length of the text.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    height, width = image_size({"sample_size": size or config.get("sample_size")}) or (32, 32)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype or torch.float32)

    def between(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (batch,), generator=generator).to(device)

    def draw(key: str) -> torch.Tensor:
        last = key.rpartition(".")[2]
        if last == "timestep":
            return _timesteps(signature.class_name, between)
        if last == "class_labels":
            kind, labels = config.get("class_embed_type"), _labels(config)
            if kind in ("projection", "simple_projection"):
                return normal(batch, config["projection_class_embeddings_input_dim"])
            if kind == "identity":
                return normal(batch, _time_width(config))
            return between(0, labels)
        if last in _UNBATCHED:
            return _positions(last, height, width, tokens).to(device, dtype or torch.float32)
        if last == "guidance":
            return torch.full((batch,), 3.5, device=device)
        if last == "encoder_attention_mask":
            mask = torch.ones(batch, tokens)
            mask[:, tokens // 2 :] = between(0, 2).cpu()[:, None].float()
            return mask.to(device, dtype or torch.float32)
        return normal(*_shape(signature.class_name, config, last, (batch, height, width, tokens)))

    return tuple(draw(key) for key in signature.inputs)


def _shape(class_name: str, config: Config, key: str, sizes: tuple[int, int, int, int]) -> tuple[int, ...]:
    batch, height, width, tokens = sizes
    if key in ("sample", "hidden_states"):
        if class_name == "FluxTransformer2DModel":
            return batch, height // 2 * (width // 2), config["in_channels"]
        return batch, config["in_channels"], height, width
    if key == "encoder_hidden_states":
        fields = ("joint_attention_dim", "caption_channels", "encoder_hid_dim", "cross_attention_dim")
        text = next(config[field] for field in fields if config.get(field))
        return batch, tokens, text if isinstance(text, int) else text[0]
    if key == "text_embeds":  # the projection takes the text beside six embedded sizes
        return batch, config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    fixed = {"time_ids": 6, "resolution": 2, "aspect_ratio": 1}
    if key in fixed:
        return batch, fixed[key]
    named = {"pooled_projections": "pooled_projection_dim", "timestep_cond": "time_cond_proj_dim"}
    return batch, config[named[key]]


def _timesteps(class_name: str, between: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
    steps = between(0, 1000)
    if class_name == "FluxTransformer2DModel":
        return steps.float() / 1000
    return steps.float() + 0.25 if class_name == "SD3Transformer2DModel" else steps


def image_size(config: Config) -> tuple[int, int] | None:
    """Height and width of x, where a configuration gives them.

    >>> image_size({"sample_size": 32}), image_size({"sample_size": [8, 16]}), image_size({})
    ((32, 32), (8, 16), None)
    """
    size = config.get("sample_size")
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ModelError(f"its configuration's sample_size must be one or two whole numbers, not {size!r}")
    return pair


def _labels(config: Config) -> int:
    return int(config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 1000)


def _time_width(config: Config) -> int:
    return int(config.get("time_embedding_dim") or config["block_out_channels"][0] * 4)


def _positions(key: str, height: int, width: int, tokens: int) -> torch.Tensor:
    import torch

    if key == "txt_ids":
        return torch.zeros(tokens, 3)
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
