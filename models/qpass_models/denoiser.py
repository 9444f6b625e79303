"""What every adapter of a diffusers class shares: how it is called, its examples, its sampler."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qpass.errors import ModelError
from qpass.model import ModelAdapter
from qpass.sampling import Conditions, Sampler, Sampling, to_uint8
from qpass_models import signatures
from qpass_models.examples import example, image_size


class Denoiser(ModelAdapter):
    """An adapter of one of the classes in the table of signatures, wherever it lies."""

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
        return example(self._signature, self.architecture, batch, dtype=self.dtype_)

    def dynamic(self) -> tuple[tuple[int, ...], ...]:
        """Batch, and the image size of UNets."""
        return self._signature.dynamic

    def config(self) -> Mapping[str, Any]:
        """The diffusers configuration."""
        return {k: v for k, v in self.architecture.items() if not k.startswith("_name")}

    def signature(self) -> Mapping[str, Any]:
        """How the class is called."""
        return attrs.asdict(self._signature)

    def cannot_sample(self) -> str | None:
        """Text-conditional models need prompts; a lone component needs a noise schedule; latents, a decoder."""
        extra = [key for key in self._signature.inputs[2:] if key != "class_labels"]
        if extra:
            return (
                f"{self.class_name} also takes {', '.join(extra)}, which come from a text encoder, and qpass "
                "does not sample with prompts yet"
            )
        if self.schedule() is None:
            return (
                "the model comes without a noise schedule; give the whole pipeline, or "
                'model.scheduler = {beta_schedule = "linear"}'
            )
        if self.decoder() is None and self.architecture.get("out_channels", 3) not in (3, 6):
            return "its outputs are latents and no autoencoder lies beside it; give the whole pipeline"
        if image_size(self.architecture) is None:
            return "its configuration gives no sample_size, the height and width of what it draws"
        return None

    def sampler(self) -> Sampler:
        """Shape, schedule, classes and decoder."""
        if reason := self.cannot_sample():
            raise ModelError(reason)
        return Sampler(
            shape=(self.architecture["in_channels"], *(image_size(self.architecture) or ())),
            scheduler_config=dict(self.schedule() or {}),
            dtype=self.dtype_,
            conditions=functools.partial(_classes, self._signature.inputs, self.architecture),
            decode=self.decoder() or to_uint8,
        )


def _classes(
    inputs: Sequence[str], config: Mapping[str, Any], indices: Sequence[int], sampling: Sampling
) -> Conditions:
    """Class labels in turn. diffusers' DiT keeps one more row in its table, for no class."""
    if "class_labels" not in inputs:
        return Conditions()
    count = int(config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 1)
    given = torch.tensor([i % count for i in indices])
    has_empty = config.get("num_embeds_ada_norm") is not None
    return Conditions(given=(given,), empty=(torch.full_like(given, count),) if has_empty else None)


@torch.no_grad()
def decode(module: Any, latents: Tensor) -> Tensor:
    """Latents to uint8 images with a diffusers autoencoder, undoing its scaling first."""
    autoencoder = module.to(latents.device)
    scale = autoencoder.config.get("scaling_factor") or 1.0
    shift = autoencoder.config.get("shift_factor") or 0.0
    return to_uint8(autoencoder.decode(latents.to(autoencoder.dtype) / scale + shift).sample)


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
