"""Images as one PNG inside the page: exact pixels, tiled in rows, transparent lines between tiles."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import attrs
import numpy as np
from PIL import Image

from qpass.evaluator import EvaluationError

Array = np.ndarray[Any, Any]

MOST_PIXELS = 4 << 20  # of one grid; what does not fit is left out and counted
_SMALL = 340  # a grid narrower than this is enlarged on the page, pixel by pixel


@attrs.frozen(kw_only=True)
class Picture:
    """A grid of images, as a data address. A small one is enlarged with its pixels left square."""

    label: str
    source: str
    width: int
    height: int
    small: bool


def shown(images: Array, name: str) -> int:
    """How many images, from the first, one grid takes."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise EvaluationError(
            f"images {name!r} of an evaluator must be uint8 of N x H x W x 3, not {images.dtype} of {images.shape}"
        )
    _, height, width, _ = images.shape
    return min(len(images), max(1, MOST_PIXELS // max(1, int(height * width))))


def picture(images: Array, label: str) -> Picture:
    """The images as a grid."""
    tiles = grid(images, columns(len(images)))
    height, width = tiles.shape[:2]
    file = io.BytesIO()
    Image.fromarray(tiles).save(file, format="PNG", optimize=True)
    return Picture(
        label=label,
        source="data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"),
        width=width,
        height=height,
        small=width < _SMALL,
    )


def columns(count: int) -> int:
    """How many images stand in a row: a little fewer than in a column, if that leaves fewer holes.

    >>> [columns(n) for n in (1, 4, 10, 16, 32, 64)]
    [1, 2, 3, 4, 4, 8]
    """
    most = math.isqrt(count)
    return min(range(max(1, math.ceil(0.7 * most)), most + 1), key=lambda c: (-count % c, -c))


def grid(images: Array, columns: int) -> Array:
    """N x H x W x 3 as one RGBA image, row by row; tile (i, j) starts at pixel (i (H + 1), j (W + 1))."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    tiles = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        tile = tiles[top : top + height, left : left + width]
        tile[..., :3], tile[..., 3] = image, 255
    return tiles


def difference(first: Array, second: Array) -> tuple[Array, int]:
    """|first - second| times a power of two, the largest at which at most one value in a hundred saturates."""
    apart = np.abs(first.astype(np.int16) - second.astype(np.int16))
    high = float(np.percentile(apart, 99)) or float(apart.max())
    factor = 1 << min(6, int(math.log2(255 / high))) if high else 1
    return np.minimum(apart * factor, 255).astype(np.uint8), factor
