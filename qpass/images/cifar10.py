"""CIFAR-10 from the folder that the environment variable QPASS_DATA names: six lossless sheets of 10,000 images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from qpass.evaluator import EvaluationError
from qpass.images.contract import Images, Pictures
from qpass.images.folder import files_fingerprint

SHEETS = {"cifar10-train": tuple(f"train_{i}" for i in range(1, 6)), "cifar10-test": ("test",)}
ROWS, SIDE = 100, 32  # images along each edge of a sheet, pixels along each edge of an image
EACH = ROWS * ROWS


class Cifar10Images(Images):
    """The training set (50,000) or the test set (10,000), in file order."""

    def __init__(self, name: str) -> None:
        self._name = name
        missing = [str(file) for file in self.files if not file.is_file()]
        if missing:
            raise EvaluationError(f"{name!r}: there is no file {missing[0]!r}; QPASS_DATA is {str(self.folder)!r}")

    @property
    def name(self) -> str:
        return self._name

    @cached_property
    def folder(self) -> Path:
        if "QPASS_DATA" not in os.environ:
            raise EvaluationError(
                f"{self._name!r} is read from the folder in the environment variable QPASS_DATA, which is not set; "
                "set it to a folder with cifar10/train_1.webp and so on, or give images of your own"
            )
        return Path(os.environ["QPASS_DATA"])

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / "cifar10" / f"{sheet}.webp" for sheet in SHEETS[self._name])

    def __len__(self) -> int:
        return EACH * len(SHEETS[self._name])

    def fingerprint(self) -> str:
        return f"{self._name} {files_fingerprint(self.folder, self.files)}"

    def read(self, start: int, stop: int) -> Iterator[Pictures]:
        for number, file in enumerate(self.files):
            begin, end = start - number * EACH, stop - number * EACH
            if begin < EACH and end > 0:
                yield sheet(file)[max(begin, 0) : end]


def sheet(file: Path) -> Pictures:
    """The images of one sheet, row by row: 10,000 x 32 x 32 x 3."""
    from PIL import Image

    edge = ROWS * SIDE  # 3200 x 3200 pixels stay below PIL's limit on what it takes for an attack
    try:
        with Image.open(file) as image:
            if image.size != (edge, edge):
                raise ValueError(f"its size is {image.size[0]} x {image.size[1]}, not {edge} x {edge}")
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise EvaluationError(
            f"CIFAR-10's sheet {str(file)!r} cannot be read: {error}; copy it again from where it came"
        ) from error
    grid = pixels.reshape(ROWS, SIDE, ROWS, SIDE, 3)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3, 4)).reshape(EACH, SIDE, SIDE, 3)
