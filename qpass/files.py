"""Files that are either whole or not there: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qpass.errors import QpassError, StorageError

UNFINISHED = ".tmp-qpass-"  # what every file and folder is called until it is whole
_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; free some space, then give the same command again: it resumes",
    errno.EDQUOT: "the disk quota is used up; free some space, then give the same command again: it resumes",
    errno.EROFS: "the disk is read-only; choose another folder with --out",
    errno.EACCES: "permission denied; choose another folder with --out",
    errno.EPERM: "not permitted; choose another folder with --out",
    errno.ENOTDIR: "a file stands where a folder should be; choose another folder with --out",
    errno.EEXIST: "a file stands where a folder should be; choose another folder with --out",
    errno.EISDIR: "a file stands where a folder should be, or the other way round; choose another folder with --out",
    errno.EFBIG: "files may not grow that large here; raise the limit (`ulimit -f`), or choose another folder",
}

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


def temporary_folder() -> Path:
    """A new folder that is gone when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="qpass-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def free_bytes(path: Path) -> int:
    """What the disk has room for at a path, which need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn what the system says about a path into a sentence with a way out."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        other = f"{error.strerror}; choose another folder with --out"
        raise StorageError(f"cannot write {str(path)!r}: {_WAYS_OUT.get(error.errno, other)}") from error


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def locked(file: Path, busy: str, say: Callable[[str], None] = _to_stderr) -> Iterator[None]:
    """Hold a lock that one process at a time can have; a `QpassError` that says `busy` where another has it.

    Some file systems, of clusters above all, have no locks: work goes on without, and `say` is told.
    """
    with storage(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("w")
    with handle:
        with storage(file):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise QpassError(busy) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                say(
                    f"the file system of {str(file.parent)!r} has no locks ({error.strerror}): give no other command "
                    "that writes there until this one has ended"
                )
        yield


def write_file(path: Path, data: bytes | str) -> None:
    """Write a whole file or none."""
    raw = data.encode() if isinstance(data, str) else data
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(raw)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the block ends well and is gone when it does not."""
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
        try:
            yield aside
            for file in aside.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            os.chmod(aside, 0o755)
            sync_folder(aside)
            _replace_folder(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_folder(path.parent)


def _replace_folder(new: Path, path: Path) -> None:
    """Put a folder in another's place; at no moment is there a half-deleted one."""
    if not path.exists():
        os.replace(new, path)
        return
    old = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
    try:
        os.replace(path, old)  # onto an empty folder; refused where `path` is a file
        os.replace(new, path)
    finally:
        shutil.rmtree(old)


def sync_folder(path: Path) -> None:
    """Make a rename in this folder last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(path: Path, pattern: str = f"{UNFINISHED}*") -> None:
    """Remove what an interrupted run left half-written in a folder."""
    for left in list(path.glob(pattern)):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def checksum(document: Mapping[str, Any]) -> str:
    """The hash of a JSON document, all but the `checksum` that it carries itself."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
