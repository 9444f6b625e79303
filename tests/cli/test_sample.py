"""`qpass sample` writes a grid of images."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qpass.cli import main
from qpass.cli.sample import GAP, grid


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `qpass sample` asked for; it gets images whose every pixel is their number."""
    seen: dict[str, Any] = {}

    def sample(folder: Path, **rest: Any) -> np.ndarray[Any, Any]:
        seen.update(folder=folder, **rest)
        return np.arange(rest["count"], dtype=np.uint8).reshape(-1, 1, 1, 1) + np.zeros((1, 4, 6, 3), np.uint8)

    made = ModuleType("qpass.run")
    made.sample = sample  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qpass.run", made)
    return seen


def test_the_grid_holds_every_image_in_order(calls: dict[str, Any], tmp_path: Path) -> None:
    """Image i of the file stands at row i // columns, column i % columns, unchanged."""
    out = tmp_path / "grid.png"
    args = ["--count", "7", "--seed", "3", "--steps", "5"]
    assert main(["sample", str(tmp_path), "--out", str(out), *args]) == 0
    assert [calls[k] for k in ("folder", "count", "seed", "steps", "device")] == [tmp_path, 7, 3, 5, "cpu"]
    sheet = np.asarray(Image.open(out))
    for i in range(7):
        top, left = i // 3 * (4 + GAP), i % 3 * (6 + GAP)
        assert (sheet[top : top + 4, left : left + 6] == i).all()


def test_a_file_that_is_there_is_replaced(calls: dict[str, Any], tmp_path: Path) -> None:
    """The old file goes, and no unfinished file stays beside the new one."""
    out = tmp_path / "grid.png"
    out.write_text("old")
    assert main(["sample", str(tmp_path), "--count", "1", "--out", str(out)]) == 0
    assert Image.open(out).size == (6, 4)
    assert list(tmp_path.iterdir()) == [out]


def test_a_failure_leaves_the_old_file(
    calls: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fills up half-way, the old file is whole, nothing else is left, and the exit code is 2."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "grid.png"
    out.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["sample", str(tmp_path), "--count", "1", "--out", str(out)]) == 2
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3), (64, 8, 8)])
def test_the_grid_is_nearly_square(count: int, rows: int, columns: int) -> None:
    """There are as many columns as rows, or a few more, and never an empty row."""
    height, width, _ = grid(np.zeros((count, 8, 8, 3), np.uint8)).shape
    assert (height, width) == (rows * (8 + GAP) - GAP, columns * (8 + GAP) - GAP)


def test_the_target_folder_must_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there is refused before anything is drawn."""
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "no" / "grid.png")]) == 2
    assert f"there is no folder {str(tmp_path / 'no')!r}; create it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "grid.jpg"], "--out: 'grid.jpg' must end in .png"),
        (["--out", "grid.png", "--count", "0"], "--count: 0 is not in the range x>=1"),
        ([], "Missing option '--out'"),
    ],
)
def test_bad_options(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named with its rule, and the exit code is 2."""
    assert main(["sample", str(tmp_path), *args]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is named."""
    assert main(["sample", str(tmp_path / "none"), "--out", str(tmp_path / "grid.png")]) == 2
    assert "none' does not exist" in capsys.readouterr().err
