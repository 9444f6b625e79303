"""Read a diffusers folder: find the denoiser, its class and configuration, its scheduler and its autoencoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from qpass.errors import ModelError, did_you_mean
from qpass_models.legacy import LEGACY, modern
from qpass_models.signatures import known

DENOISERS = ("unet", "transformer")
AUTOENCODERS = ("vae", "vqvae")
CLASSES = "class_embedder"
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")


@attrs.frozen(kw_only=True)
class Folder:
    """A denoiser on disk. `pipeline` is the folder around it, where it is part of a whole pipeline."""

    denoiser: Path
    pipeline: Path | None

    @property
    def config(self) -> Mapping[str, Any]:
        """The denoiser's own configuration, an old one as today's class takes it."""
        return modern(read_json(self.denoiser / "config.json"))

    @property
    def class_name(self) -> str:
        """The denoiser's diffusers class."""
        return str(self.config["_class_name"])

    @property
    def scheduler(self) -> Mapping[str, Any] | None:
        """The scheduler's configuration: the pipeline's, or one that lies beside the denoiser's."""
        beside = self.denoiser / "scheduler_config.json"
        inside = self.pipeline / "scheduler" / "scheduler_config.json" if self.pipeline else beside
        for path in (inside, beside):
            if path.is_file():
                return read_json(path)
        return None

    @property
    def autoencoder(self) -> Path | None:
        """The pipeline's autoencoder, if it has one."""
        for name in AUTOENCODERS:
            if self.pipeline and (self.pipeline / name / "config.json").is_file():
                return self.pipeline / name
        return None

    @property
    def classes(self) -> Path | None:
        """The pipeline's class embedding, if it has one."""
        folder = self.pipeline / CLASSES if self.pipeline else None
        return folder if folder and folder.is_dir() else None

    @property
    def text_pipeline(self) -> str | None:
        """The pipeline's class, if text encoders are part of it."""
        if self.pipeline is None or not any((self.pipeline / name).is_dir() for name in TEXTS[:3]):
            return None
        return str(read_json(self.pipeline / "model_index.json").get("_class_name"))

    def fingerprint(self) -> str:
        """A hash over every file that determines images: weights, configurations, and what comes before and after."""
        beside = ("scheduler", CLASSES, *TEXTS)
        parts = [self.pipeline / name for name in beside] if self.pipeline else []
        folders = [self.denoiser, self.autoencoder, *parts]
        digest = hashlib.sha256()
        for folder in folders:
            for piece in contents(folder) if folder else ():
                digest.update(piece)
        return digest.hexdigest()


def contents(folder: Path) -> Iterator[bytes]:
    """Of each file that something is loaded from, its name and its hash; nothing where there is no such folder."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
            yield file.name.encode() + b"\0"
            with file.open("rb") as opened:
                yield hashlib.file_digest(opened, "sha256").digest()


def find(path: Path, component: str = "") -> Folder:
    """The denoiser in a folder: the folder itself, or a component of the pipeline that it holds."""
    if not path.is_dir():
        raise ModelError(
            f"model.path: no folder {str(path)!r}; give one that `save_pretrained` wrote, or a hub id, with "
            "--set model.path=FOLDER"
        )
    if (path / "model_index.json").is_file():
        parts = {p.name: p for p in path.iterdir() if (p / "config.json").is_file()}
        name = component or next((n for n in DENOISERS if n in parts), "")
        if not name and (path / "config.json").is_file():  # older pipelines of one network keep it at their root
            return _known(Folder(denoiser=path, pipeline=None))
        if name not in parts:
            wanted = f"no component {name!r}" if name else "neither a unet nor a transformer"
            raise ModelError(f"model.path: {str(path)!r} holds {wanted}, {did_you_mean(name, parts)}")
        return _known(Folder(denoiser=parts[name], pipeline=path))
    if component:
        raise ModelError(
            f"model.component: {str(path)!r} is a single model, not a pipeline, so it has no component "
            f"{component!r}; leave the option out"
        )
    if not (path / "config.json").is_file():
        raise ModelError(f"model.path: {str(path)!r} holds neither model_index.json nor config.json")
    return _known(Folder(denoiser=path, pipeline=None))


def _known(folder: Folder) -> Folder:
    name = folder.config.get("_class_name")
    if name == LEGACY:
        norm = folder.config.get("norm_type")
        raise ModelError(
            f"{str(folder.denoiser)!r} holds a {LEGACY} with norm_type {norm!r}, which is neither a DiT "
            "(ada_norm_zero) nor a PixArt (ada_norm_single); a plugin can bring an adapter for it"
        )
    if name not in known():
        raise ModelError(
            f"{str(folder.denoiser)!r} holds a {name}, which qpass does not know how to call, "
            f"{did_you_mean(str(name), known())}; a plugin can bring an adapter for it"
        )
    return folder


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object in a file, or a `ModelError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error}; fetch it again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{str(path)!r} must hold a JSON object")
    return data
