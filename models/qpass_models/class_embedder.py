"""The class embedding of latent diffusion on ImageNet (2112.10752, LDM-4): one vector of cross-attention per class.

diffusers has no pipeline for it. Here it lies beside the denoiser in `class_embedder/`, as one safetensors file with
the release's `embedding.weight`, classes x width; its last row stands for no class (1000 in the release).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from qpass.errors import ModelError


def read_table(folder: Path) -> Tensor:
    """The embedding, one row for each class and one for none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelError(f"{str(folder)!r} must hold one safetensors file, not {len(files)}")
    try:
        tensors = load_file(files[0])
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{str(files[0])!r} cannot be read: {error}; fetch it again") from error
    table: Tensor | None = tensors.get("embedding.weight")
    if table is None or table.ndim != 2 or len(table) < 2:
        raise ModelError(
            f"{str(files[0])!r} must hold `embedding.weight`, classes x width, whose last row stands for no class; "
            f"it holds {', '.join(sorted(tensors)) or 'nothing'}"
        )
    return table


class ClassEmbedder:
    """A table in a folder, read when first asked."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read
        self._table: Tensor | None = None

    def __call__(self) -> Tensor:
        """The table."""
        if self._table is None:
            self._table = self._read()
        return self._table
