"""A denoiser that is already in memory: a diffusers module or a whole pipeline, handed over in Python."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from qpass.errors import ModelError
from qpass.model import ModelAdapter
from qpass_models import signatures
from qpass_models.autoencoder import Decoder, pixel_scale
from qpass_models.denoiser import Denoiser, public
from qpass_models.diffusers_folder import AUTOENCODERS, DENOISERS, TEXTS
from qpass_models.held import contents, on
from qpass_models.text import TextEncoders, known


@attrs.frozen(kw_only=True, eq=False)
class InMemory(Denoiser):
    """What `qpass.quantize(module)` and `qpass.quantize(pipeline)` work on; a recipe file cannot name it.

    Its weights are read, never changed. A lone module comes without a noise schedule: give the pipeline, or
    `scheduler`, for whatever must sample.
    """

    name: ClassVar[str] = "in-memory"
    module: Any = attrs.field(metadata={"help": "a diffusers module, given in Python", "data": False})
    scheduler: dict[str, Any] = attrs.field(
        factory=dict, metadata={"help": "noise schedule, in diffusers' words; a pipeline brings its own"}
    )
    optional: tuple[str, ...] = attrs.field(
        default=(),
        metadata={"help": "inputs the class may be called without, like encoder_attention_mask of PixArt"},
    )
    autoencoder: Any = attrs.field(
        default=None, metadata={"help": "what decodes latents; a pipeline brings its own", "data": False}
    )
    pipeline: Any = attrs.field(
        default=None, metadata={"help": "what encodes prompts: the pipeline it came in", "data": False}
    )

    def __attrs_post_init__(self) -> None:
        if type(self.module).__name__ not in signatures.known():
            raise ModelError(
                f"module must be one of {', '.join(signatures.known())}, not {type(self.module).__name__}; "
                "for another class write a model adapter (`qpass new model NAME`)"
            )

    @classmethod
    def adopt(cls, thing: object) -> ModelAdapter | None:
        """A module of a known class, or the denoiser of a pipeline with its scheduler and autoencoder."""
        if type(thing).__name__ in signatures.known():
            return cls(module=thing)
        parts = [getattr(thing, name, None) for name in DENOISERS]
        module = next((part for part in parts if part is not None), None)
        if module is None or not hasattr(thing, "scheduler"):
            return None
        coder = next((c for name in AUTOENCODERS if (c := getattr(thing, name, None)) is not None), None)
        texts = known(type(thing).__name__)
        mask = texts and type(module).__name__ == "PixArtTransformer2DModel"
        return cls(
            module=module,
            scheduler=_schedule(thing.scheduler),
            optional=("encoder_attention_mask",) if mask else (),
            autoencoder=coder,
            pipeline=thing if texts else None,
        )

    @property
    def class_name(self) -> str:
        return type(self.module).__name__

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {"_class_name": self.class_name, **public(self.module.config)}

    @property
    def optional_inputs(self) -> tuple[str, ...]:
        return self.optional

    @property
    def dtype_(self) -> torch.dtype:
        dtype: torch.dtype = self.module.dtype
        return dtype

    def load(self) -> nn.Module:
        """The module itself, which tracing copies; a copy on the CPU where it lies elsewhere."""
        module: nn.Module = on(self.module, torch.device("cpu"))
        return module

    def fingerprint(self) -> str:
        """Of all that determines images: weights and configurations, and what comes before and after."""
        digest = hashlib.sha256()
        for part in (self.module, self.autoencoder, *(getattr(self.pipeline, name, None) for name in TEXTS)):
            for piece in contents(part):
                digest.update(piece)
        return digest.hexdigest()

    def schedule(self) -> Mapping[str, Any] | None:
        """The pipeline's, or the one given."""
        return self.scheduler or None

    def pixels_per_latent(self) -> int:
        """As the autoencoder's configuration says."""
        return 1 if self.autoencoder is None else pixel_scale(self.autoencoder.config)

    def texts(self) -> TextEncoders | None:
        """The pipeline's own."""
        encoders = [getattr(self.pipeline, name, None) for name in TEXTS[:3]]
        if all(encoder is None for encoder in encoders):
            return None
        name = type(self.pipeline).__name__
        texts: TextEncoders = self._part("texts", lambda: TextEncoders(name, lambda: self.pipeline))
        return texts

    def decoder(self) -> Callable[[Tensor], Tensor] | None:
        """The pipeline's autoencoder."""
        if self.autoencoder is None:
            return None
        if not hasattr(self.autoencoder, "decode"):
            raise ModelError(f"autoencoder must be a diffusers autoencoder, not {type(self.autoencoder).__name__}")
        made: Decoder = self._part("decoder", lambda: Decoder(lambda: self.autoencoder))
        return made


def _schedule(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration without infinite defaults, which no artifact can hold and diffusers puts back."""
    options = inspect.signature(type(scheduler).__init__).parameters
    return {"_class_name": type(scheduler).__name__} | {
        key: value
        for key, value in public(scheduler.config).items()
        if not (
            isinstance(value, float) and math.isinf(value) and key in options and options[key].default == value
        )
    }
