"""How each diffusers class is called: which inputs it takes, in which order, and what shapes they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from qpass.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]
Size = int | tuple[int, int]


@attrs.frozen(kw_only=True)
class Signature:
    """How one class, in one configuration, is called. Plain data: `attrs.asdict` of it is JSON.

    `inputs` are dotted keyword paths in denoise order `(x, t, *cond)`; `dynamic` are the dimensions of each that
    may differ from call to call; `parameters` is the positional order of the class's own `forward`.
    """

    class_name: str
    inputs: tuple[str, ...]
    dynamic: tuple[tuple[int, ...], ...]
    parameters: tuple[str, ...]
    output: str = "sample"


@attrs.frozen(kw_only=True)
class _Class:
    """One line of the table: inputs always taken, inputs a configuration asks for, inputs a caller may ask for."""

    inputs: tuple[str, ...]
    asked: tuple[tuple[str, Callable[[Config], bool]], ...] = ()
    optional: tuple[str, ...] = ()
    parameters: tuple[str, ...]
    resizable: bool = False  # dims 2 and 3 of x may change


def _wants(*fields: str) -> Callable[[Config], bool]:
    return lambda config: any(config.get(field) not in (None, False) for field in fields)


def _adds(kind: str) -> Callable[[Config], bool]:
    return lambda config: config.get("addition_embed_type") == kind


def _pixart_sizes(config: Config) -> bool:
    asked = config.get("use_additional_conditions")
    return config.get("sample_size", 128) == 128 if asked is None else bool(asked)


_TRANSFORMER = ("encoder_hidden_states", "pooled_projections", "timestep")

_TABLE: dict[str, _Class] = {
    "UNet2DModel": _Class(
        inputs=("sample", "timestep"),
        asked=(("class_labels", _wants("class_embed_type", "num_class_embeds")),),
        parameters=("sample", "timestep", "class_labels", "return_dict"),
        resizable=True,
    ),
    "UNet2DConditionModel": _Class(
        inputs=("sample", "timestep", "encoder_hidden_states"),
        asked=(
            ("class_labels", _wants("class_embed_type", "num_class_embeds")),
            ("timestep_cond", _wants("time_cond_proj_dim")),
            ("added_cond_kwargs.text_embeds", _adds("text_time")),
            ("added_cond_kwargs.time_ids", _adds("text_time")),
        ),
        optional=("encoder_attention_mask",),
        parameters=(
            "sample", "timestep", "encoder_hidden_states", "class_labels", "timestep_cond", "attention_mask",
            "cross_attention_kwargs", "added_cond_kwargs", "down_block_additional_residuals",
            "mid_block_additional_residual", "down_intrablock_additional_residuals", "encoder_attention_mask",
            "return_dict",
        ),
        resizable=True,
    ),
    "DiTTransformer2DModel": _Class(
        inputs=("hidden_states", "timestep", "class_labels"),
        parameters=("hidden_states", "timestep", "class_labels", "cross_attention_kwargs", "return_dict"),
    ),
    "PixArtTransformer2DModel": _Class(
        inputs=("hidden_states", "timestep", "encoder_hidden_states"),
        asked=(
            ("added_cond_kwargs.resolution", _pixart_sizes),
            ("added_cond_kwargs.aspect_ratio", _pixart_sizes),
        ),
        optional=("encoder_attention_mask",),
        parameters=(
            "hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs", "cross_attention_kwargs",
            "attention_mask", "encoder_attention_mask", "return_dict",
        ),
    ),
    "SD3Transformer2DModel": _Class(
        inputs=("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"),
        parameters=(
            "hidden_states", *_TRANSFORMER, "block_controlnet_hidden_states", "joint_attention_kwargs",
            "return_dict", "skip_layers",
        ),
    ),
    "FluxTransformer2DModel": _Class(
        inputs=(
            "hidden_states", "timestep", "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids",
        ),
        asked=(("guidance", _wants("guidance_embeds")),),
        parameters=(
            "hidden_states", *_TRANSFORMER, "img_ids", "txt_ids", "guidance", "joint_attention_kwargs",
            "controlnet_block_samples", "controlnet_single_block_samples", "return_dict",
            "controlnet_blocks_repeat",
        ),
    ),
}  # fmt: skip

_UNBATCHED = ("img_ids", "txt_ids")
_UNKNOWN_ADDITIONS = ("text", "text_image", "image", "image_hint")


def known() -> tuple[str, ...]:
    """The diffusers classes the table knows."""
    return tuple(_TABLE)


def signature(class_name: str, config: Config, *, optional: tuple[str, ...] = ()) -> Signature:
    """The signature of a class in one configuration; `optional` adds inputs that a caller chooses to pass.

    >>> signature("DiTTransformer2DModel", {}).inputs
    ('hidden_states', 'timestep', 'class_labels')
    >>> signature("UNet2DModel", {"num_class_embeds": 10}).inputs
    ('sample', 'timestep', 'class_labels')
    >>> signature("UNet2DModel", {}).dynamic
    ((0, 2, 3), (0,))
    """
    row = _row(class_name)
    if class_name == "UNet2DConditionModel" and config.get("addition_embed_type") in _UNKNOWN_ADDITIONS:
        raise ModelError(
            f"{class_name} with addition_embed_type={config['addition_embed_type']!r} is not in the table; "
            "None and 'text_time' are. Wrap the module and give its call to qpass.trace instead."
        )
    for key in optional:
        if key not in row.optional:
            raise ModelError(f"{class_name} has no optional input {key!r}; {did_you_mean(key, row.optional)}")
    inputs = row.inputs + tuple(key for key, asked in row.asked if asked(config)) + tuple(optional)
    first = (0, 2, 3) if row.resizable else (0,)
    rest = tuple(() if key in _UNBATCHED else (0,) for key in inputs[1:])
    return Signature(class_name=class_name, inputs=inputs, dynamic=(first, *rest), parameters=row.parameters)


def call(signature: Signature, module: Any, *denoise: Any) -> Any:
    """Calls `module` the way its class wants, with arguments in denoise order; returns the output tensor.

    `functools.partial(call, signature)` is what `qpass.trace` takes as its `call`.
    """
    if len(denoise) != len(signature.inputs):
        raise ModelError(
            f"{signature.class_name} takes {len(signature.inputs)} inputs {signature.inputs}, got {len(denoise)}"
        )
    kwargs: dict[str, Any] = {}
    for key, value in zip(signature.inputs, denoise, strict=True):
        outer, _, inner = key.partition(".")
        if inner:
            kwargs.setdefault(outer, {})[inner] = value
        else:
            kwargs[outer] = value
    return getattr(module(**kwargs, return_dict=True), signature.output)


def example(
    signature: Signature,
    config: Config,
    batch: int = 2,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    size: Size | None = None,
) -> tuple[torch.Tensor, ...]:
    """Seeded random inputs of the right shapes. The same seed gives the same values in every dtype.

    `size` is the height and width of x before patching (default: the configuration's own `sample_size`).
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    size = size or config.get("sample_size") or 32
    height, width = (size, size) if isinstance(size, int) else size

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
            return _positions(last, height, width).to(device, dtype or torch.float32)
        if last == "guidance":
            return torch.full((batch,), 3.5, device=device)
        if last == "encoder_attention_mask":
            mask = torch.ones(batch, TOKENS)
            mask[:, TOKENS // 2 :] = between(0, 2).cpu()[:, None].float()
            return mask.to(device, dtype or torch.float32)
        return normal(*_shape(signature.class_name, config, last, batch, height, width))

    return tuple(draw(key) for key in signature.inputs)


TOKENS = 7  # length of the text in an example


def _row(class_name: str) -> _Class:
    if class_name not in _TABLE:
        raise ModelError(f"no signature for the class {class_name!r}; {did_you_mean(class_name, _TABLE)}")
    return _TABLE[class_name]


def _shape(class_name: str, config: Config, key: str, batch: int, height: int, width: int) -> tuple[int, ...]:
    if key in ("sample", "hidden_states"):
        if class_name == "FluxTransformer2DModel":
            return batch, height // 2 * (width // 2), config["in_channels"]
        return batch, config["in_channels"], height, width
    if key == "encoder_hidden_states":
        text = (
            config.get("joint_attention_dim")
            or config.get("caption_channels")
            or config.get("encoder_hid_dim")
            or config.get("cross_attention_dim")
        )
        return batch, TOKENS, text if isinstance(text, int) else text[0]
    if key == "text_embeds":
        return batch, config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    widths = {
        "time_ids": lambda: 6,
        "resolution": lambda: 2,
        "aspect_ratio": lambda: 1,
        "pooled_projections": lambda: config["pooled_projection_dim"],
        "timestep_cond": lambda: config["time_cond_proj_dim"],
    }
    return batch, widths[key]()


def _timesteps(class_name: str, between: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
    steps = between(0, 1000)
    if class_name == "FluxTransformer2DModel":
        return steps.float() / 1000
    return steps.float() + 0.25 if class_name == "SD3Transformer2DModel" else steps


def _labels(config: Config) -> int:
    return int(config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 1000)


def _time_width(config: Config) -> int:
    return int(config.get("time_embedding_dim") or config["block_out_channels"][0] * 4)


def _positions(key: str, height: int, width: int) -> torch.Tensor:
    import torch

    if key == "txt_ids":
        return torch.zeros(TOKENS, 3)
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
