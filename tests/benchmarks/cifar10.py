"""CIFAR-10 from the folder that QPASS_DATA names: `cifar10/{train_1..5,test}.webp`, 100 x 100 images each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

EDGE, GRID = 32, 100


def images(split: str, count: int = 10_000) -> np.ndarray:
    """The first `count` images of `train` or `test`: uint8, count x 32 x 32 x 3."""
    if "QPASS_DATA" not in os.environ:
        raise SystemExit("set QPASS_DATA to the folder that holds cifar10/")
    parts: list[np.ndarray] = []
    for name in ["test"] if split == "test" else [f"train_{i}" for i in range(1, 6)]:
        if sum(map(len, parts)) < count:
            parts.append(_read(Path(os.environ["QPASS_DATA"]) / "cifar10" / f"{name}.webp"))
    return np.concatenate(parts)[:count]


def _read(file: Path) -> np.ndarray:
    sheet = np.asarray(Image.open(file).convert("RGB"))
    rows = sheet.reshape(GRID, EDGE, GRID, EDGE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(rows).reshape(-1, EDGE, EDGE, 3)
