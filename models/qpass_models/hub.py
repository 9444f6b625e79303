"""A model by its hub id: of its repository, the files that one denoiser and what samples it are read from."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from qpass.errors import ModelError, did_you_mean
from qpass_models.diffusers_folder import AUTOENCODERS, CLASSES, DENOISERS, TEXTS
from qpass_models.weights import choose

_PLAIN = (".json", ".txt", ".model")  # configurations, schedules, tokenizers


def download(name: str, component: str = "") -> Path:
    """The local snapshot of a hub id; offline, the one that lies in the hub's cache."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().list_repo_files(name)
    except Exception as error:  # the hub raises its own errors, and those of whichever HTTP library it is built on
        return _cached(name, error)
    chosen = [glob.escape(file) for file in wanted(name, files, component)]
    try:
        return Path(snapshot_download(name, allow_patterns=chosen))
    except Exception as error:
        raise _refused(name, error) from error


def wanted(name: str, files: Sequence[str], component: str = "") -> list[str]:
    """Of a repository's files, those to fetch: of each part in use what it is, and one form of its weights.

    A repository without a folder for the denoiser has it at its root.

    >>> wanted("a/b", ["config.json", "diffusion_pytorch_model.bin", "ema.bin", "README.md"])
    ['config.json', 'diffusion_pytorch_model.bin']
    """
    folders = {str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name == "config.json"}
    if component and component not in folders:
        known = did_you_mean(component, sorted(folders - {"."}))
        raise ModelError(f"model.component: {name!r} holds no component {component!r}, {known}")
    denoiser = component or next((part for part in DENOISERS if part in folders), "")
    parts = (denoiser, "scheduler", CLASSES, *AUTOENCODERS, *TEXTS) if denoiser else (".",)
    taken: list[str] = ["model_index.json"] if "model_index.json" in files else []
    for part in parts:
        inside = [path.name for file in files if str((path := PurePosixPath(file)).parent) == part]
        weights = choose(str(PurePosixPath(name, part)), inside).files
        taken += [
            str(PurePosixPath(part, file))
            for file in inside
            if file in weights or file.endswith(_PLAIN) or (part == CLASSES and file.endswith(".safetensors"))
        ]
    return list(dict.fromkeys(taken))


def _cached(name: str, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:  # of no pattern, since the hub would refuse the folder for any file of the pattern that it lacks
        return Path(snapshot_download(name, allow_patterns=[], local_files_only=True))
    except Exception:
        raise _refused(name, reason) from reason


def _refused(name: str, error: Exception) -> ModelError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"model.path: {name!r} is no folder here and cannot be had from the hub ({first}); "
        "check the name, or download it and give the folder"
    )
