"""Any denoiser that diffusers saved: a component's folder, a whole pipeline's, or a hub id."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from qpass.errors import ModelError
from qpass.model import ModelAdapter
from qpass.sampling import Conditions, Sampler, to_uint8
from qpass_models import signatures
from qpass_models.diffusers_folder import Folder, download, find

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@attrs.frozen(kw_only=True)
class DiffusersModel(ModelAdapter):
    """A UNet2DModel, UNet2DConditionModel, DiT, PixArt, SD3 or Flux transformer saved by diffusers.

    Images can be drawn from unconditional and class-conditional models: image i is of class i modulo the number
    of classes. A pipeline's autoencoder decodes latents. Text-conditional models are quantized and measured on
    given inputs, but not yet sampled.
    """

    name: ClassVar[str] = "diffusers"
    path: str = attrs.field(metadata={"help": "a folder that `save_pretrained` wrote, or a hub id"})
    component: str = attrs.field(
        default="", metadata={"help": "which part of a pipeline; by default its unet or transformer"}
    )
    scheduler: dict[str, Any] = attrs.field(
        factory=dict,
        metadata={
            "help": 'noise schedule of a single component, in diffusers\' words, like {beta_schedule = "linear"}'
        },
    )
    dtype: Literal["float32", "bfloat16", "float16"] = attrs.field(
        default="float32",
        validator=attrs.validators.in_(tuple(_DTYPES)),
        metadata={"help": "number format of what stays in floating point"},
    )

    def folder(self) -> Folder:
        """Where the denoiser lies on disk."""
        path = Path(self.path).expanduser()
        if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", self.path):
            path = download(self.path)
        return find(path, self.component)

    @property
    def _signature(self) -> signatures.Signature:
        folder = self.folder()
        return signatures.signature(folder.class_name, folder.config)

    def load(self) -> nn.Module:
        """The module with its weights; every one of them must be in the file."""
        folder = self.folder()
        return _load(_class(folder.class_name), folder.denoiser, _DTYPES[self.dtype]).eval()

    def skeleton(self) -> nn.Module:
        """The module on the meta device."""
        folder = self.folder()
        with torch.device("meta"):
            module: nn.Module = _class(folder.class_name).from_config(dict(folder.config))
        return _cast(module, _DTYPES[self.dtype]).eval()

    def call(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Call it the way its class wants."""
        output: Tensor = signatures.call(self._signature, module, *inputs)
        return output

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Seeded inputs."""
        return signatures.example(self._signature, self.folder().config, batch, dtype=_DTYPES[self.dtype])

    def dynamic(self) -> tuple[tuple[int, ...], ...]:
        """Batch, and the image size of UNets."""
        return self._signature.dynamic

    def config(self) -> Mapping[str, Any]:
        """The diffusers configuration."""
        return {k: v for k, v in self.folder().config.items() if not k.startswith("_name")}

    def signature(self) -> Mapping[str, Any]:
        """How the class is called."""
        return attrs.asdict(self._signature)

    def fingerprint(self) -> str:
        """Of the files."""
        return self.folder().fingerprint()

    def cannot_sample(self) -> str | None:
        """Text-conditional models need prompts; a lone component needs a noise schedule."""
        folder = self.folder()
        extra = [key for key in self._signature.inputs[2:] if key != "class_labels"]
        if extra:
            return (
                f"{folder.class_name} also takes {', '.join(extra)}, which come from a text encoder, and qpass "
                "does not sample with prompts yet"
            )
        if not self.scheduler and folder.scheduler is None:
            return (
                f"{str(folder.denoiser)!r} holds no noise schedule; give the whole pipeline's folder, or "
                'model.scheduler = {beta_schedule = "linear"}'
            )
        if folder.autoencoder is None and folder.config.get("out_channels", 3) not in (3, 6):
            return "its outputs are latents and no autoencoder lies beside it; give the whole pipeline's folder"
        return None

    def sampler(self) -> Sampler:
        """Shape, schedule, classes and decoder."""
        folder = self.folder()
        config, autoencoder = folder.config, folder.autoencoder
        size = config["sample_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return Sampler(
            shape=(config["in_channels"], height, width),
            scheduler_config=dict(self.scheduler or folder.scheduler or {}),
            conditions=functools.partial(_classes, self._signature.inputs, config),
            decode=Decoder(autoencoder) if autoencoder else to_uint8,
        )


def _classes(inputs: Sequence[str], config: Mapping[str, Any], indices: Sequence[int]) -> Conditions:
    """Class labels in turn. diffusers' DiT keeps one more row in its table, for no class."""
    if "class_labels" not in inputs:
        return Conditions()
    count = int(config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 1)
    given = torch.tensor([i % count for i in indices])
    has_empty = config.get("num_embeds_ada_norm") is not None
    return Conditions(given=(given,), empty=(torch.full_like(given, count),) if has_empty else None)


class Decoder:
    """A pipeline's autoencoder, loaded when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._module: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Latents to uint8 images."""
        if self._module is None:
            from qpass_models.diffusers_folder import read_json

            name = str(read_json(self.folder / "config.json").get("_class_name"))
            self._module = _load(_class(name), self.folder, torch.float32).eval()
        module: Any = self._module.to(latents.device)
        scale = module.config.get("scaling_factor") or 1.0
        shift = module.config.get("shift_factor") or 0.0
        return to_uint8(module.decode(latents / scale + shift).sample)


def _class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ModelError(f"diffusers {diffusers.__version__} has no class {name!r}; a newer one may")
    return cls


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """diffusers warns of every cast, needed or not."""
    return module if dtype == torch.float32 else nn.Module.to(module, dtype)


def _load(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A diffusers module from its folder; unlike diffusers itself, a missing weight is an error."""
    try:
        module, told = cls.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, low_cpu_mem_usage=False, torch_dtype=dtype
        )
    except (
        Exception
    ) as error:  # diffusers and safetensors raise OSError, ValueError, SafetensorError, RuntimeError
        first = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the weights in {str(folder)!r} cannot be loaded: {first}; fetch the folder again, it may be cut short"
        ) from error
    if missing := told["missing_keys"]:
        raise ModelError(
            f"the weights in {str(folder)!r} lack {len(missing)} tensors that its config.json asks for, "
            f"{missing[0]!r} first; the two files do not belong together"
        )
    loaded: nn.Module = module
    return loaded
