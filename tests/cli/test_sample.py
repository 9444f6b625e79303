"""`qpass sample` writes a grid of images."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qpass.cli import main
from qpass.cli.sample import GAP, grid
from qpass.images import open_images


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `qpass sample` asked for; it gets images whose every pixel is their number."""
    seen: dict[str, Any] = {}

    class Numbers:
        def batches(self, **rest: Any) -> Iterator[np.ndarray[Any, Any]]:
            seen.update(rest)
            count = rest["count"]
            yield np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) + np.zeros((1, 4, 6, 3), np.uint8)

    def artifact(folder: Path, **rest: Any) -> Numbers:
        seen.update(folder=folder, **rest)
        return Numbers()

    monkeypatch.setattr("qpass.run.draw.artifact", artifact)
    return seen


def test_the_grid_holds_every_image_in_order(calls: dict[str, Any], tmp_path: Path) -> None:
    """Image i of the file stands at row i // columns, column i % columns, unchanged."""
    out = tmp_path / "grid.png"
    args = ["--count", "7", "--seed", "3", "--steps", "5"]
    assert main(["sample", str(tmp_path), "--out", str(out), *args]) == 0
    asked = [calls[k] for k in ("folder", "count", "seed", "overrides", "device")]
    assert asked == [tmp_path, 7, 3, ("sampling.steps=5",), "cpu"]
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


def test_the_folder_of_a_file_must_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not there is refused before anything is drawn."""
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "no" / "grid.png")]) == 2
    assert f"there is no folder {str(tmp_path / 'no')!r}; create it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "grid.jpg"], "--out: 'grid.jpg' must end in .png (one grid) or .npz (an array)"),
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
    assert "none', and no model of that name: known: " in capsys.readouterr().err


def test_a_model_by_name_draws_its_own_images(unet_folder: Path, tmp_path: Path) -> None:
    """The images of a folder, of an array and of a grid are those that the original draws, one by one."""
    args = [
        "sample",
        "diffusers",
        "--set",
        f"model.path={unet_folder}",
        "--set",
        "sampling.batch=2",
        "--steps",
        "2",
    ]
    images = tmp_path / "new" / "guided-1.5"
    for out in (images, tmp_path / "array.npz", tmp_path / "grid.png"):
        assert main([*args, "--count", "5", "--seed", "3", "--out", str(out)]) == 0
    files = [np.asarray(Image.open(images / f"{i:06d}.png")) for i in range(5)]
    with np.load(tmp_path / "array.npz") as stored:
        assert (stored["arr_0"] == np.stack(files)).all()
    assert (np.asarray(Image.open(tmp_path / "grid.png")) == grid(np.stack(files))).all()
    about = json.loads((images / "sampling.json").read_text())
    assert about["seed"] == 3
    assert about["steps"] == 2
    told = open_images(str(images)).protocol()  # what figures of them will carry
    assert {k: told[k] for k in ("images", "sampler", "steps", "guidance", "seed", "passes", "model")} == {
        "images": 5, "sampler": "ddim", "steps": 2, "guidance": 1.0, "seed": 3, "passes": [], "model": "diffusers",
    }  # fmt: skip
    assert "batch" not in told
    names = {file.name for file in images.iterdir()}
    assert names == {*(f"{i:06d}.png" for i in range(5)), "sampling.json", ".lock"}


def test_an_interrupted_folder_is_filled_up(unet_folder: Path, tmp_path: Path) -> None:
    """Only missing batches are drawn again, and the images are those of an unbroken run."""
    out = tmp_path / "images"
    args = [
        "sample",
        "diffusers",
        "--set",
        f"model.path={unet_folder}",
        "--set",
        "sampling.batch=2",
        "--steps",
        "2",
    ]
    args += ["--count", "5", "--out", str(out)]
    assert main(args) == 0
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "000003.png").unlink()
    kept = (out / "000000.png").stat().st_mtime_ns
    assert main(args) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole
    assert (out / "000000.png").stat().st_mtime_ns == kept


def test_images_drawn_otherwise_are_never_mixed(
    unet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of another seed, or of something else, is refused and left as it was."""
    out = tmp_path / "images"
    args = ["sample", "diffusers", "--set", f"model.path={unet_folder}", "--steps", "1", "--count", "1"]
    assert main([*args, "--out", str(out)]) == 0
    assert main([*args, "--out", str(out), "--seed", "1"]) == 2
    assert "holds images that were drawn otherwise: seed 0 against 1" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert main([*args, "--out", str(other)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in other.iterdir()] == ["mine.txt"]


def test_an_artifact_takes_only_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would change the model is refused before it is loaded."""
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "g.png"), "--set", "model.use=x"]) == 2
    assert "only sampling.* can be set" in capsys.readouterr().err
