"""A folder of drawn images holds those of one model, drawn by one process at a time."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qpass.cli import main
from qpass.run.draw import LOCK

Command = Callable[..., int]


@pytest.fixture
def drawn(run: Command, tmp_path: Path) -> Path:
    """Two images of a run's artifact."""
    assert run(tmp_path / "run") == 0
    assert sample(tmp_path) == 0
    return tmp_path / "images"


def sample(folder: Path, *options: str) -> int:
    command = ["sample", str(folder / "run"), "--count", "2", "--set", "sampling.batch=1", "--steps", "1"]
    return main([*command, "--out", str(folder / "images"), *options])


def images(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


def test_an_artifact_that_was_made_anew(
    run: Command, drawn: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With other bits under the same path the folder is refused; with the same bytes once more it is filled up."""
    before = images(drawn)
    (drawn / "000001.png").unlink()
    assert run(tmp_path / "run", "--set", "passes.assign.weight=int2 channel") == 0
    assert sample(tmp_path) == 2
    said = capfd.readouterr().err
    assert f"error: '{drawn}' holds images that were drawn otherwise: artifact '" in said
    assert images(drawn).keys() == {"000000.png"}
    shutil.rmtree(tmp_path / "run")
    assert run(tmp_path / "run") == 0
    assert sample(tmp_path) == 0
    assert images(drawn) == before


def test_the_same_artifact_by_another_path(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path, or a folder that was moved, is no other artifact: the images are filled up."""
    before = images(drawn)
    (drawn / "000001.png").unlink()
    monkeypatch.chdir(tmp_path)
    assert sample(Path()) == 0
    assert images(drawn) == before


def test_one_drawing_at_a_time(drawn: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """While another process draws into the folder, a second is refused, and nothing is drawn."""
    (drawn / "000001.png").unlink()
    with (drawn / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert sample(tmp_path) == 2
    assert f"error: another `qpass sample` is at work in '{drawn}'; wait for it" in capfd.readouterr().err
    assert images(drawn).keys() == {"000000.png"}


def test_fewer_than_are_there(drawn: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder holds as many as were asked for, or the command says why not."""
    before = images(drawn)
    assert sample(tmp_path, "--count", "1") == 2
    assert f"'{drawn}' has 2 images already, more than the 1 asked for; give --count 2" in capfd.readouterr().err
    assert images(drawn) == before


def test_a_note_of_something_else(drawn: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A list where a table should be says nothing of the folder."""
    (drawn / "sampling.json").write_text("[]")
    assert sample(tmp_path) == 2
    assert "is not empty, and no sampling.json says what is in it" in capfd.readouterr().err


def test_images_in_a_folder_of_the_models_name(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again goes on with the model, and does not take its own images for an artifact."""
    monkeypatch.chdir(tmp_path)
    command = [
        "sample",
        "diffusers",
        "--set",
        f"model.path={recipe.parent / 'model'}",
        "--count",
        "2",
        "--steps",
        "1",
    ]
    command += ["--set", 'model.scheduler={beta_schedule = "linear"}', "--out", "diffusers"]
    assert main(command) == 0
    before = images(tmp_path / "diffusers")
    (tmp_path / "diffusers" / "000001.png").unlink()
    assert main(command) == 0
    assert images(tmp_path / "diffusers") == before


def test_a_claim_that_was_cut_short(drawn: Path, tmp_path: Path) -> None:
    """A folder that holds a lock and a half-written note, and nothing else, is nobody's yet."""
    before = images(drawn)
    for file in drawn.iterdir():
        if file.name != LOCK:
            file.unlink()
    (drawn / ".tmp-qpass-x").write_text("{")
    assert sample(tmp_path) == 0
    assert images(drawn) == before
    assert not (drawn / ".tmp-qpass-x").exists()
