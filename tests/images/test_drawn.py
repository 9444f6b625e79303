"""Images drawn from a model lie on disk; a drawing that was interrupted goes on, and gives the same bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from qpass.images import DrawnImages, OriginalImages
from qpass.manager import PassContext
from qpass.model import ModelAdapter


class PowerError(Exception):
    """The power goes."""


def everything(images: Any) -> np.ndarray:
    return np.concatenate(list(images.batches(1000)))


def fresh(context: PassContext, scratch: Path) -> PassContext:
    """The context of another process that works in the same folder."""
    from qpass.analysis import Analyses

    return attrs.evolve(context, scratch=scratch, analyses=Analyses())


def test_interrupted_and_resumed(context: PassContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each batch in turn, the images are the same to the byte, and no batch is drawn twice."""
    graph = context.reference
    expected = everything(fresh(context, tmp_path / "whole").get(OriginalImages(count=10), graph))
    drawn: list[int] = []
    real = ModelAdapter.sample

    def one_batch(self: Any, denoise: Any, *, first: int = 0, **rest: Any) -> Iterator[Any]:
        for batch in real(self, denoise, first=first, **rest):
            drawn.append(first)
            yield batch
            raise PowerError

    monkeypatch.setattr(ModelAdapter, "sample", one_batch)
    for _ in range(3):
        with pytest.raises(PowerError):
            fresh(context, tmp_path / "torn").get(OriginalImages(count=10), graph)
    images = fresh(context, tmp_path / "torn").get(OriginalImages(count=10), graph)
    assert drawn == [0, 4, 8]
    assert np.array_equal(everything(images), expected)


def test_a_damaged_batch_is_drawn_again(context: PassContext, tmp_path: Path) -> None:
    """Whether it is cut short, changed or gone; the others stay."""
    graph = context.reference
    expected = everything(fresh(context, tmp_path).get(OriginalImages(count=10), graph))
    files = sorted(tmp_path.rglob("*.npz"))
    times = [file.stat().st_mtime_ns for file in files]
    for damage in ("cut", "changed", "gone"):
        raw = files[1].read_bytes()
        if damage == "gone":
            files[1].unlink()
        else:
            files[1].write_bytes(raw[:300] if damage == "cut" else raw[:400] + bytes([raw[400] ^ 1]) + raw[401:])
        images = fresh(context, tmp_path).get(OriginalImages(count=10), graph)
        assert np.array_equal(everything(images), expected)
    assert [file.stat().st_mtime_ns for file in files][::2] == times[::2]


def test_batches_are_shared(context: PassContext, tmp_path: Path) -> None:
    """Whoever asks for more finds the full batches of who asked for fewer; the order does not matter."""
    graph = context.reference
    fresh(context, tmp_path).get(OriginalImages(count=6), graph)
    fresh(context, tmp_path).get(OriginalImages(count=9), graph)
    assert [file.stem for file in sorted(tmp_path.rglob("*.npz"))] == [
        "0000000-0000004", "0000004-0000006", "0000004-0000008", "0000008-0000009",
    ]  # fmt: skip


def test_models_are_told_apart(context: PassContext, tmp_path: Path) -> None:
    """Another graph, other weights, another seed or sampling: other images, in one folder."""
    other = copy.deepcopy(context.reference)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    seeded = attrs.evolve(context, seed=1)
    slower = attrs.evolve(context, sampling=attrs.evolve(context.sampling, steps=5))
    for ctx, graph in ((context, context.reference), (context, other), (seeded, other), (slower, other)):
        fresh(ctx, tmp_path).get(DrawnImages(count=2), graph)
    assert len(list((tmp_path / "images").iterdir())) == 4


def test_the_protocol(context: PassContext, tmp_path: Path) -> None:
    """All that determines the images is said, and nothing of where they lie."""
    images = fresh(context, tmp_path).get(OriginalImages(count=2), context.reference)
    protocol = dict(images.protocol())
    assert {"images", "sampler", "steps", "eta", "guidance", "seed", "rounding"} <= set(protocol)
    assert (protocol["images"], protocol["sampler"], protocol["steps"], protocol["seed"]) == (2, "ddim", 4, 0)
    assert str(tmp_path) not in str(protocol)
