"""Disks that refuse: exit code 2 with a way out, nothing half-written, and the same command resumes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qpass.errors import StorageError
from qpass.files import locked, new_folder, write_file

Command = Callable[..., int]


def unfinished(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name.startswith(".tmp-")]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, where this machine lets us mount one."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # loaded tensors are mapped files


def test_below_a_file(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run's folder cannot lie below a file."""
    (tmp_path / "file").write_text("mine")
    assert run(tmp_path / "file" / "run") == 2
    assert "a file stands where a folder should be; choose another folder with --out" in capfd.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_where_nobody_may_write(run: Command, capfd: pytest.CaptureFixture[str]) -> None:
    """A file system that takes no folders, not even from root, is the user's mistake, with a way out."""
    assert run(Path("/proc/qpass")) == 2
    said = capfd.readouterr().err
    assert "error: cannot write '/proc/qpass" in said
    assert "choose another folder with --out" in said
    assert "bug" not in said


@pytest.mark.parametrize("size", [1_000, 20_000])
def test_files_may_not_grow(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str], size: int) -> None:
    """Under a limit that stops a small or a large file, nothing half-written stays; without it, it resumes."""
    with largest_file(size):
        assert run(tmp_path / "run") == 2
    said = capfd.readouterr().err
    assert "error: cannot write " in said
    assert "files may not grow that large here; raise the limit (`ulimit -f`)" in said
    assert not unfinished(tmp_path)
    assert not (tmp_path / "run" / "artifact").exists()
    assert run(tmp_path / "run") == 0


def test_full_disk(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On a full disk the run stops with exit code 2 and resumes once there is room."""
    with small_disk(tmp_path / "disk", 150_000) as disk:
        assert run(disk / "run") == 2
        assert "the disk is full; free some space, then give the same command again" in capfd.readouterr().err
        assert not unfinished(disk)
        subprocess.run(["mount", "-o", "remount,size=20000000", str(disk)], check=True)
        assert run(disk / "run") == 0


def ran_before(folder: Path) -> None:
    """Make it a run's folder, which may replace what it wrote."""
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "facts.json").write_text("{}")


@pytest.mark.parametrize("place", ["artifact", "stages/01-assign", "stages"])
def test_a_file_in_the_way(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str) -> None:
    """A file that stands where the run wants a folder is never deleted for it."""
    mine = tmp_path / "run" / place
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    if place != "stages":
        ran_before(tmp_path / "run")
    assert run(tmp_path / "run") == 2
    assert "a file stands where a folder should be" in capfd.readouterr().err
    assert mine.read_text() == "mine"
    assert not unfinished(tmp_path)


def test_a_folder_in_the_way(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder that stands where the run wants a file is never deleted for it."""
    (tmp_path / "run" / "recipe.toml").mkdir(parents=True)
    ran_before(tmp_path / "run")
    assert run(tmp_path / "run") == 2
    assert "or the other way round; choose another folder with --out" in capfd.readouterr().err
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("place", ["recipe.toml", "artifact/notes.txt", "report.json"])
def test_what_is_not_a_runs_is_never_replaced(
    run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    """A folder in which nothing was ever run, and which holds a name that a run would write, is refused as it is."""
    mine = tmp_path / "mine" / place
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert run(tmp_path / "mine") == 2
    first = place.partition("/")[0]
    assert (
        f"is no run's folder, and its '{first}' would be replaced; choose another --out" in capfd.readouterr().err
    )
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [mine]
    assert mine.read_text() == "mine"


def fill(folder: Path, text: str) -> None:
    """Fails either way: at the limit of the file's size, or after it."""
    with new_folder(folder) as aside:
        (aside / "x").write_text(text)
        raise ZeroDivisionError


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    """Whatever goes wrong while a new folder is filled, the old one stays as it was."""
    with new_folder(tmp_path / "a") as aside:
        (aside / "x").write_text("old")
    for size, expected in ((3, ZeroDivisionError), (300, StorageError)):
        with largest_file(100), pytest.raises(expected):
            fill(tmp_path / "a", "x" * size)
    assert (tmp_path / "a" / "x").read_text() == "old"
    with new_folder(tmp_path / "a") as aside:
        (aside / "y").write_text("new")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """A file that cannot be written leaves the old one."""
    write_file(tmp_path / "x", "old")
    with largest_file(100), pytest.raises(StorageError, match=r"cannot write .*/x"):
        write_file(tmp_path / "x", "new" * 100)
    assert (tmp_path / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def refuse(number: int) -> Callable[..., None]:
    """A `flock` that fails as the system call does."""

    def flock(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks(
    run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The run goes on, and says that nothing keeps a second one out."""
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    assert run(tmp_path / "run") == 0
    said = capfd.readouterr()
    assert f"has no locks ({os.strerror(number)}): give no other command" in " ".join(
        (said.out + said.err).split()
    )


def test_a_lock_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the system says of the lock is one sentence with a way out."""
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    said = r"cannot write .*\.lock': .*; choose another folder with --out"
    with pytest.raises(StorageError, match=said), locked(tmp_path / ".lock", "busy"):
        pass
