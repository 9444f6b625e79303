"""Reads weights from a file without pickle, and names them by a hash of its bytes."""

from __future__ import annotations

import hashlib
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qpass.evaluator import EvaluationError

SHIPPED = Path(__file__).with_name("weights")
WANTED = "give the path of a .safetensors, .pt or .pth file"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file that holds one state dict; in fp32 where floating."""
    require(path)
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of a protocol that it reads out of any bytes
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fails on other bytes in whatever way they lead it to
        # torch's own words are of pickle's insides, or recommend to run whatever code is in the file
        own = isinstance(error, OSError | SafetensorError)
        reason = str(error).splitlines()[0] if own else "it is no file of tensors that torch saved, or damaged"
        raise EvaluationError(
            f"weights {str(path)!r} cannot be read: {reason}; fetch the file again, or {WANTED}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise EvaluationError(f"weights {str(path)!r} must hold one state dict: tensors by name, nothing else")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def require(path: Path, way_out: str = WANTED) -> None:
    """Raise `EvaluationError` where there is no such file."""
    if not path.is_file():
        raise EvaluationError(f"weights {str(path)!r} are no file; {way_out}")


def fingerprint(path: Path) -> str:
    """The first 16 hex digits of the SHA-256 of the file's bytes; read once for as long as the file stays as it is."""
    require(path)
    state = path.stat()
    return _fingerprint(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _fingerprint(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def check_names(path: Path, found: set[str], wanted: set[str], what: str) -> None:
    """Raise `EvaluationError` where tensors that the network needs are not in its file."""
    if missing := sorted(wanted - found):
        raise EvaluationError(
            f"weights {str(path)!r} are not those of {what}: {len(missing)} of {len(wanted)} tensors are missing, "
            f"the first is {missing[0]!r}"
        )
