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
