"""The contract of a feature network: uint8 images in, one row of numbers per image out, and what determines it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qpass.evaluator import EvaluationError

Pictures = np.ndarray[Any, Any]
Run = Callable[[Pictures], Mapping[str, Tensor]]
CPU = torch.device("cpu")


class FeatureNetwork(ABC):
    """Subclasses are `@attrs.frozen(kw_only=True)`: they are their options, and hash as such.

    Weights are read when features are first asked for, and kept outside of the object.
    """

    name: ClassVar[str]
    batch: ClassVar[int] = 32  # images computed at once

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights."""

    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """Everything that determines the features, as plain JSON: features, weights, resize, precision."""

    @abstractmethod
    def dimensions(self) -> Mapping[str, int]:
        """The outputs by name, and how many numbers each holds of an image."""

    @abstractmethod
    def prepare(self, device: torch.device) -> Run:
        """A function from one batch of images to its features on that device; weights are read here."""

    def check(self) -> None:
        """Raise `EvaluationError` where its file of weights holds none that fit; asked before images are drawn."""
        return

    def check_size(self, height: int, width: int) -> None:
        """Raise `EvaluationError` where it cannot look at images of that size."""
        return

    def features(self, images: Pictures, device: torch.device = CPU) -> Mapping[str, Tensor]:
        """uint8 images N x H x W x 3 to fp32 features (N, dimension) on the CPU, for any N."""
        check_images(self.name, images)
        self.check_size(*images.shape[1:3])
        run = self.prepare(device)
        parts: dict[str, list[Tensor]] = {
            name: [torch.empty(0, width)] for name, width in self.dimensions().items()
        }
        with torch.inference_mode(), full_precision(device):
            for start in range(0, len(images), self.batch):
                for name, rows in run(images[start : start + self.batch]).items():
                    parts[name].append(rows.float().cpu())
            # copied out of inference mode: callers may do with features whatever they do with tensors
        return {name: torch.cat(rows).clone() for name, rows in parts.items()}


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute fp32 as fp32, whatever the process was told.

    On a GPU torch convolves it in TF32, with ten bits, unless told otherwise; matrices it multiplies in TF32 or bf16,
    on processors too, where `torch.set_float32_matmul_precision` has allowed it.
    """
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    on_gpu = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    try:
        with on_gpu if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def as_tensor(images: Pictures, device: torch.device) -> Tensor:
    """The images on that device; copied, as arrays may be read-only or run backwards."""
    return torch.from_numpy(images.copy()).to(device)


def check_images(name: str, images: object) -> None:
    """Raise `EvaluationError` where images are not uint8 of N x H x W x 3."""
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3:
        if 0 in images.shape[1:3]:
            raise EvaluationError(f"{name}: images of {images.shape[1]} x {images.shape[2]} have no pixels")
        return
    raise EvaluationError(f"{name}: images must be uint8 of N x H x W x 3, not {_what(images)}")


def _what(images: object) -> str:
    if not isinstance(images, np.ndarray):
        return type(images).__name__
    what = f"{images.dtype} of {' x '.join(map(str, images.shape)) or 'no axes'}"
    if np.issubdtype(images.dtype, np.floating):
        wrong = int((~np.isfinite(images)).sum())
        trouble = f" with {wrong} values that are not finite" if wrong else ""
        return f"{what}{trouble}; round them to 0..255 first, as the saved PNG would be"
    if images.ndim == 4 and images.shape[3] in (1, 4):
        return what + (
            "; repeat the gray channel three times" if images.shape[3] == 1 else "; drop the alpha channel"
        )
    if images.ndim == 4 and images.shape[1] == 3:
        return f"{what}; channels come last"
    return what
