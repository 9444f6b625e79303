"""What every adapter of a diffusers class shares: how it is called, its examples, its sampler."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qpass.errors import ModelError
from qpass.model import ModelAdapter
from qpass.sampling import Sampler, Sampling, to_uint8
from qpass_models import signatures
from qpass_models.conditions import FROM_TEXT, KNOWN, UNBATCHED, Conditioner
from qpass_models.examples import example, image_size
from qpass_models.text import TextEncoders, length, needs_transformers

FLUX = "FluxTransformer2DModel"
_VECTORS = ("identity", "projection", "simple_projection")  # kinds of class embedding that are no table


@attrs.frozen(kw_only=True)
class Denoiser(ModelAdapter):
    """An adapter of one of the classes in the table of signatures, wherever it lies."""

    # a folder, text encoders and the like: found or made when first asked for, once for all that ask
    _parts: dict[str, Any] = attrs.field(init=False, factory=dict, eq=False, repr=False)

    @property
    @abstractmethod
    def class_name(self) -> str:
        """The diffusers class."""

    @property
    @abstractmethod
    def architecture(self) -> Mapping[str, Any]:
        """Its configuration, in diffusers' words."""

    @property
    @abstractmethod
    def dtype_(self) -> torch.dtype:
        """The number format of what stays in floating point."""

    @property
    @abstractmethod
    def optional_inputs(self) -> tuple[str, ...]:
        """Inputs that callers of this class may give or leave out, and do give."""

    @abstractmethod
    def schedule(self) -> Mapping[str, Any] | None:
        """The configuration of the noise schedule, if it is known."""

    @abstractmethod
    def decoder(self) -> Callable[[Tensor], Tensor] | None:
        """What turns latents into uint8 images, if there is one."""

    @abstractmethod
    def pixels_per_latent(self) -> int:
        """How much larger images are than what the denoiser draws: 1 without an autoencoder."""

    @abstractmethod
    def texts(self) -> TextEncoders | None:
        """What encodes prompts, if text encoders belong to it."""

    def classes(self) -> Callable[[], Tensor] | None:
        """The table of class embeddings that a text model is conditioned on in place of text, if there is one."""
        return None

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._parts:
            self._parts[name] = make()
        return self._parts[name]

    @property
    def _signature(self) -> signatures.Signature:
        return signatures.signature(self.class_name, self.architecture, optional=self.optional_inputs)

    def skeleton(self) -> nn.Module:
        """The module on the meta device."""
        try:
            with torch.device("meta"):
                module: nn.Module = diffusers_class(self.class_name).from_config(dict(self.architecture))
        except ModelError:
            raise
        except Exception as error:  # diffusers raises whatever a wrong value happens to lead to
            reason = " ".join(str(error).split())
            raise ModelError(f"its configuration makes no {self.class_name}: {reason}") from error
        return cast(module, self.dtype_).eval()

    def call(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Call it the way its class wants."""
        output: Tensor = signatures.call(self._signature, module, *inputs)
        return output

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Seeded inputs."""
        return example(self._signature, self.architecture, batch, dtype=self.dtype_, size=self._size())

    def workload(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Seeded inputs with a text as long as its pipeline makes it; a class embedding is as long as one token."""
        texts = self.texts()
        tokens = 1 if self.classes() is not None else length(texts.pipeline if texts else "", self.class_name)
        return example(
            self._signature, self.architecture, batch, dtype=self.dtype_, size=self._size(), tokens=tokens
        )

    def dynamic(self) -> tuple[tuple[int, ...], ...]:
        """Batch, and the image size of UNets."""
        return self._signature.dynamic

    def config(self) -> Mapping[str, Any]:
        """The diffusers configuration."""
        return {"_class_name": self.class_name, **public(self.architecture)}

    def signature(self) -> Mapping[str, Any]:
        """How the class is called."""
        return attrs.asdict(self._signature)

    def unbatched(self) -> tuple[int, ...]:
        """Flux's positions are the same for every image."""
        return tuple(place for place, key in enumerate(self._signature.inputs) if key in UNBATCHED)

    def cannot_sample(self) -> str | None:
        """Text needs its encoders; a lone component needs a noise schedule; latents need a decoder."""
        inputs = self._signature.inputs[2:]
        if (kind := self.architecture.get("class_embed_type")) in _VECTORS:
            return f"its class_embed_type is {kind!r}, which takes vectors, and qpass gives numbers of classes"
        taken, given = (self.architecture.get(name) for name in ("in_channels", "out_channels"))
        if taken and given and given not in (taken, 2 * taken):
            return (
                f"it takes {taken} channels and gives {given}: part of its input is an image or a mask of its own, and "
                "qpass does not know what to give"
            )
        if unknown := [key for key in inputs if key not in KNOWN]:
            return f"{self.class_name} also takes {', '.join(unknown)}, and qpass does not know what to give"
        text = [key for key in inputs if key in FROM_TEXT]
        if text and self.texts() is None and self.classes() is None:
            return (
                f"{self.class_name} also takes {', '.join(text)}, which come from a text encoder, and none that "
                "qpass knows lies beside it; give the whole pipeline"
            )
        source, gives = self._made_of_prompts()
        if missing := [key for key in text if key not in gives]:
            return (
                f"it is to be given {', '.join(missing)}, which {source} does not make; leave out of model.optional "
                "what it lists of these, or give the pipeline that makes them"
            )
        if text and self.classes() is None and (reason := needs_transformers()):
            return reason
        if self.schedule() is None:
            return (
                "the model comes without a noise schedule; give the whole pipeline, or "
                'model.scheduler = {beta_schedule = "linear"}'
            )
        if self.decoder() is None and taken == 2:
            return "its images have 2 channels, and qpass draws, keeps and compares those of 1 or 3"
        if self.decoder() is None and self.architecture.get("out_channels", 3) not in (1, 2, 3, 6):
            return "its outputs are latents and no autoencoder lies beside it; give the whole pipeline"
        if self._size() is None:
            return "its configuration gives no sample_size, the height and width of what it draws"
        return None

    def _made_of_prompts(self) -> tuple[str, tuple[str, ...]]:
        """What stands in for text, in words, and the inputs it makes."""
        texts = self.texts()
        if self.classes() is not None or texts is None:
            return "its class embedding", ("encoder_hidden_states",)
        return texts.pipeline, texts.gives

    def check_sampling(self, sampling: Sampling) -> None:
        """Prompts for models of text, and for those alone."""
        self._conditioner().check(sampling)

    def sampler(self) -> Sampler:
        """Shape, schedule, conditions and decoder."""
        if reason := self.cannot_sample():
            raise ModelError(reason)
        (height, width), scale = self._size() or (0, 0), self.pixels_per_latent()
        channels, schedule, draw = self.architecture["in_channels"], dict(self.schedule() or {}), self.decoder()
        if draw is not None:
            schedule.setdefault("clip_sample", False)  # latents have no range; DDIM would take them for images
        flux, patch = self.class_name == FLUX, self.architecture.get("patch_size") or 1
        if flux:  # its latents are 2 x 2 patches in a row, its noise levels end at 1/n, its time goes from 1 to 0
            patch, schedule = 2, {"timestep_spacing": "trailing", **schedule}
            draw = functools.partial(_unpacked, (height, width), draw or to_uint8)
        tokens = height // patch * (width // patch)
        if schedule.get("use_dynamic_shifting"):
            schedule["image_tokens"] = tokens
        return Sampler(
            shape=(tokens, channels) if flux else (channels, height, width),
            scheduler_config=schedule,
            dtype=self.dtype_,
            time_scale=1e-3 if flux else 1.0,
            conditions=self._conditioner(),
            decode=draw or to_uint8,
            size=(height * scale, width * scale),
        )

    def _size(self) -> tuple[int, int] | None:
        """Height and width of the latents. Flux has none of its own; its pipeline takes 128."""
        default = (128, 128) if self.class_name == FLUX else None
        return image_size(self.architecture) or default

    def _conditioner(self) -> Conditioner:
        height, width = self._size() or (0, 0)
        scale = self.pixels_per_latent()
        return Conditioner(
            inputs=self._signature.inputs[2:],
            config=self.architecture,
            dtype=self.dtype_,
            grid=(height, width),
            pixels=(height * scale, width * scale),
            texts=self.texts(),
            classes=self.classes(),
        )


def _unpacked(grid: tuple[int, int], draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Flux's row of patches, N x tokens x 4C, as latents N x C x H x W, then drawn."""
    rows, columns = grid[0] // 2, grid[1] // 2
    x = x.reshape(len(x), rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return draw(x.reshape(len(x), -1, 2 * rows, 2 * columns))


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without diffusers' own notes: versions, paths, and defaults in an order that changes."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def diffusers_class(name: str) -> Any:
    """The class of that name in diffusers."""
    import diffusers

    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ModelError(f"diffusers {diffusers.__version__} has no class {name!r}; a newer one may")
    return cls


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in another dtype; diffusers' own `to` warns of every cast, needed or not."""
    return module if dtype == torch.float32 else nn.Module.to(module, dtype)
