"""How each diffusers class is called: which inputs it takes, in which order, and what shapes they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from qpass.errors import ModelError, did_you_mean
from qpass_models.examples import example, image_size

Config = Mapping[str, Any]

__all__ = ["Signature", "call", "example", "known", "signature"]


@attrs.frozen(kw_only=True)
class Signature:
    """How one class, in one configuration, is called. `attrs.asdict` of it is JSON.

    `inputs` are dotted keyword paths in denoise order `(x, t, *cond)`; `dynamic` are the dimensions of each
    that may differ from call to call; `parameters` is the positional order of the class's own `forward`. Where height
    and width may not differ they are `size`; where they may, they are multiples of `multiple`.
    """

    class_name: str
    inputs: tuple[str, ...]
    dynamic: tuple[tuple[int, ...], ...]
    parameters: tuple[str, ...]
    output: str = "sample"
    size: tuple[int, int] | None = None
    multiple: int = 1


@attrs.frozen(kw_only=True)
class _Class:
    """A line of the table: inputs always taken, those a configuration asks for, those a caller may add."""

    inputs: tuple[str, ...]
    asked: tuple[tuple[str, Callable[[Config], bool]], ...] = ()
    optional: tuple[str, ...] = ()
    parameters: tuple[str, ...]
    resizable: bool = False  # dims 2 and 3 of x may change
    tokens: bool = False  # x is a row of patches, whose number may change


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
            "hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs",
            "cross_attention_kwargs", "attention_mask", "encoder_attention_mask", "return_dict",
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
        tokens=True,
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

# the length of a text may change; image positions and text positions have no batch
_DYNAMIC: dict[str, tuple[int, ...]] = {
    "encoder_hidden_states": (0, 1),
    "encoder_attention_mask": (0, 1),
    "txt_ids": (0,),
    "img_ids": (0,),
}
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
    first = (0, 2, 3) if row.resizable else (0, 1) if row.tokens else (0,)
    rest = tuple(_DYNAMIC.get(key, (0,)) for key in inputs[1:])
    size = image_size(config)
    halved = 2 ** max(0, len(config.get("down_block_types") or ()) - 1)
    # a UNet that meets an odd size on its way down is traced as one that crops on its way up, and then takes any
    whole = row.resizable and size is not None and not any(side % halved for side in size)
    return Signature(
        class_name=class_name,
        inputs=inputs,
        dynamic=(first, *rest),
        parameters=row.parameters,
        size=None if row.resizable or row.tokens else size,
        multiple=halved if whole else 1,
    )


def call(signature: Signature, module: Any, *denoise: Any) -> Any:
    """Calls `module` the way its class wants, with arguments in denoise order; returns the output tensor.

    `functools.partial(call, signature)` is what `qpass.trace` takes as its `call`.
    """
    if len(denoise) != len(signature.inputs):
        raise ModelError(
            f"{signature.class_name} takes {len(signature.inputs)} inputs, {', '.join(signature.inputs)}; "
            f"it got {len(denoise)}"
        )
    kwargs: dict[str, Any] = {}
    for key, value in zip(signature.inputs, denoise, strict=True):
        outer, _, inner = key.partition(".")
        if inner:
            kwargs.setdefault(outer, {})[inner] = value
        else:
            kwargs[outer] = value
    return getattr(module(**kwargs, return_dict=True), signature.output)


def _row(class_name: str) -> _Class:
    if class_name not in _TABLE:
        raise ModelError(f"no signature for the class {class_name!r}; {did_you_mean(class_name, _TABLE)}")
    return _TABLE[class_name]
