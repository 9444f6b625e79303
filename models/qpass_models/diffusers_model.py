"""Any denoiser that diffusers saved: a component's folder, a whole pipeline's, or a hub id."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from qpass.errors import ModelError
from qpass_models.autoencoder import Decoder, pixel_scale
from qpass_models.class_embedder import ClassEmbedder, read_table
from qpass_models.denoiser import Denoiser, diffusers_class
from qpass_models.diffusers_folder import Folder, find, read_json
from qpass_models.hub import download
from qpass_models.text import TextEncoders, known, load_encoders
from qpass_models.weights import variant

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@attrs.frozen(kw_only=True)
class DiffusersModel(Denoiser):
    """A UNet2DModel, UNet2DConditionModel, DiT, PixArt, SD3 or Flux transformer saved by diffusers.

    Image i is of class i modulo the number of classes, or of prompt i modulo the number of prompts in [sampling].
    A pipeline's text encoders encode them, and its autoencoder decodes latents; a lone text-conditional denoiser is
    quantized and measured on given inputs, but not sampled.
    """

    name: ClassVar[str] = "diffusers"
    path: str = attrs.field(metadata={"help": "a folder that `save_pretrained` wrote, or a hub id"})
    component: str = attrs.field(
        default="", metadata={"help": "which part of a pipeline; by default its unet or transformer"}
    )
    scheduler: dict[str, Any] = attrs.field(
        factory=dict,
        metadata={
            "help": "options of the noise schedule, in diffusers' words: all of a lone component's, or those that "
            'differ from the pipeline\'s own: {beta_schedule = "linear"}'
        },
    )
    optional: tuple[str, ...] = attrs.field(
        default=(),
        metadata={"help": "inputs the class may be called without, like encoder_attention_mask of PixArt"},
    )
    dtype: Literal["float32", "bfloat16", "float16"] = attrs.field(
        default="float32",
        validator=attrs.validators.in_(tuple(_DTYPES)),
        metadata={"help": "number format of what stays in floating point"},
    )

    def folder(self) -> Folder:
        """Where the denoiser lies on disk."""
        folder: Folder = self._part("folder", self._find)
        return folder

    def _find(self) -> Folder:
        path = Path(self.path).expanduser()
        if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", self.path):
            path = download(self.path, self.component)
        return find(path, self.component)

    @property
    def class_name(self) -> str:
        return self.folder().class_name

    @property
    def architecture(self) -> Mapping[str, Any]:
        folder = self.folder()
        return {**_defaults(folder.class_name), **folder.config}

    @property
    def optional_inputs(self) -> tuple[str, ...]:
        """Those given; a PixArt pipeline also gives the mask of its text."""
        folder = self.folder()
        mask = folder.class_name == "PixArtTransformer2DModel" and folder.text_pipeline is not None
        return self.optional or (("encoder_attention_mask",) if mask else ())

    @property
    def dtype_(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    def load(self) -> nn.Module:
        """The module with its weights; every one of them must be in the file."""
        folder = self.folder()
        return _load(diffusers_class(folder.class_name), folder.denoiser, self.dtype_).eval()

    def fingerprint(self) -> str:
        """Of the files."""
        return self.folder().fingerprint()

    def schedule(self) -> Mapping[str, Any] | None:
        """The pipeline's, with what the recipe changes of it."""
        return {**(self.folder().scheduler or {}), **self.scheduler} or None

    def decoder(self) -> Callable[[Tensor], Tensor] | None:
        """The pipeline's autoencoder."""
        autoencoder = self.folder().autoencoder
        return self._part("decoder", lambda: FolderDecoder(autoencoder)) if autoencoder else None

    def pixels_per_latent(self) -> int:
        """As the autoencoder's configuration says."""
        autoencoder = self.folder().autoencoder
        return pixel_scale(read_json(autoencoder / "config.json")) if autoencoder else 1

    def texts(self) -> TextEncoders | None:
        """The pipeline's text encoders."""
        folder = self.folder()
        name = folder.text_pipeline or ""
        if (path := folder.pipeline) is None or not known(name):
            return None
        texts: TextEncoders = self._part(
            "texts", lambda: TextEncoders(name, lambda: load_encoders(path, self.dtype_))
        )
        return texts

    def classes(self) -> Callable[[], Tensor] | None:
        """The pipeline's class embedding."""
        path = self.folder().classes
        return self._part("classes", lambda: ClassEmbedder(lambda: read_table(path))) if path else None


def _defaults(name: str) -> dict[str, Any]:
    """What diffusers takes for options that a folder's configuration leaves out, as older ones do."""
    options = inspect.signature(diffusers_class(name).__init__).parameters.values()
    return {option.name: option.default for option in options if option.default is not option.empty}


class FolderDecoder(Decoder):
    """That of an autoencoder in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(lambda: self._read(folder))

    @staticmethod
    def _read(folder: Path) -> nn.Module:
        name = str(read_json(folder / "config.json").get("_class_name"))
        return _load(diffusers_class(name), folder, torch.float32).eval()


def _load(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A diffusers module from its folder; unlike diffusers itself, a missing weight is an error."""
    from diffusers.utils import logging

    which = variant(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it says is said below, in one sentence
    try:
        module, told = cls.from_pretrained(
            folder,
            output_loading_info=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=dtype,
            variant=which,
        )
    except Exception as error:  # diffusers raises OSError, ValueError, SafetensorError, RuntimeError
        first = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the weights in {str(folder)!r} cannot be loaded: {first}; fetch the folder again, it may be cut short"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := told["missing_keys"]:
        raise ModelError(
            f"the weights in {str(folder)!r} lack {len(missing)} tensors that its config.json asks for, "
            f"{missing[0]!r} first; the two files do not belong together"
        )
    loaded: nn.Module = module
    return loaded
