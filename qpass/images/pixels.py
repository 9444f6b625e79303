"""One decoded image as uint8 of H x W x 3: what is converted, with a warning, and what is refused.

Grayscale is repeated to three channels, and said once. Transparency is refused, since what lies behind it would be a
choice that changes every figure; an alpha channel that is opaque everywhere is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qpass.evaluator import EvaluationError
from qpass.images.contract import Pictures, Say

if TYPE_CHECKING:
    from PIL.Image import Image

GRAY = ("1", "L", "LA")
ALPHA = ("LA", "RGBA", "PA")


class Reader:
    """Turns images of one source into arrays of one size; says what it converted, the first time."""

    def __init__(self, source: str, say: Say) -> None:
        self.source, self.say = source, say
        self.size: tuple[int, int] | None = None
        self.first = ""
        self.warned = False

    def picture(self, image: Image, label: str) -> Pictures:
        """An image of PIL's, fully decoded by now; `label` names it in errors."""
        if image.mode in ALPHA or "transparency" in image.info:
            image = image.convert("RGBA")
            if np.asarray(image)[..., 3].min() < 255:
                raise EvaluationError(
                    f"{label} is partly transparent, and what lies behind would change every figure; "
                    "put the images on a background of your choice and save them as RGB"
                )
        elif image.mode in GRAY:
            self.gray(label)
        elif image.mode not in ("RGB", "P"):
            raise EvaluationError(
                f"{label} has pixels of mode {image.mode!r}, not 8-bit RGB; convert the images and save them as RGB"
            )
        return self.checked(np.asarray(image.convert("RGB")), label)

    def gray(self, label: str) -> None:
        """Say that gray is repeated to three channels."""
        if not self.warned:
            self.say(f"warning: {label} is grayscale; its one channel is repeated to three, as in all like it")
            self.warned = True

    def checked(self, pixels: Pictures, label: str) -> Pictures:
        """The same array; an `EvaluationError` where its size is not that of the first."""
        size = (pixels.shape[0], pixels.shape[1])
        if self.size is None:
            self.size, self.first = size, label
        if size != self.size:
            raise EvaluationError(
                f"{self.source}: images must be of one size, but {label} is {_size(size)} and {self.first} is "
                f"{_size(self.size)}; resize them, or leave the odd ones out"
            )
        return pixels


def checked_array(array: np.ndarray[Any, Any], start: int, source: str, reader: Reader) -> Pictures:
    """A piece of a stored array that begins at image `start`, as uint8 of N x H x W x 3."""
    if np.issubdtype(array.dtype, np.floating):
        wrong = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        if len(wrong):
            raise EvaluationError(f"{source}: image {start + int(wrong[0])} holds values that are NaN or infinite")
        return array
    if array.shape[3] == 4:
        wrong = np.flatnonzero((array[..., 3] < 255).reshape(len(array), -1).any(1))
        if len(wrong):
            raise EvaluationError(
                f"{source}: image {start + int(wrong[0])} is partly transparent; put the images on a background of "
                "your choice and store three channels"
            )
        return array[..., :3]
    if array.shape[3] == 1:
        reader.gray(f"image {start} of {source}")
        return np.repeat(array, 3, axis=3)
    return array


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
