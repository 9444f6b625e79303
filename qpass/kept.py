"""Tensors and what is known of them, kept in one file that tells whether it is whole: shards, blocks, checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qpass.files import checksum, write_file


def keep(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write both; until all of it is there, what was there before stays. `about` is any JSON."""
    ready = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    document = {**about, "tensors": hash_of(ready)}
    write_file(file, save(ready, metadata={"qpass": json.dumps({**document, "checksum": checksum(document)})}))


def kept(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Both, if they are there and whole."""
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {})["qpass"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        if about.pop("checksum") != checksum(about) or about.pop("tensors") != hash_of(tensors):
            return None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return tensors, about


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of the tensors' names and bytes, in whatever order they come."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].numpy().tobytes())
    return total.hexdigest()
