"""Images in a folder and the folders below it, in the order of their paths, whose numbers count as numbers.

Beside images that `qpass sample` drew lies a note of how; what is measured on them carries it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from qpass.evaluator import EvaluationError
from qpass.images.contract import Images, Pictures, Say, stacked
from qpass.images.pixels import Reader

ABOUT = "sampling.json"  # what images in a folder were drawn from, and how
PLACES = frozenset({"drawn_from", "artifact", "batch"})  # what it says that is not how a figure was measured
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class FolderImages(Images):
    """PNG, JPEG and WebP files. A file that cannot be read is named, and stops the reading."""

    def __init__(self, path: Path, say: Say) -> None:
        self.path, self.say = path, say
        if not self.files:
            raise EvaluationError(
                f"folder {str(path)!r} holds no images; looked for {', '.join(SUFFIXES)} in it and the folders below"
            )

    @cached_property
    def files(self) -> tuple[Path, ...]:
        found = (file for file in below(self.path) if file.suffix.lower() in SUFFIXES)
        return tuple(sorted(found, key=lambda file: natural(file.relative_to(self.path).as_posix())))

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        return files_fingerprint(self.path, self.files)

    def protocol(self) -> Mapping[str, Any]:
        try:
            note = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            note = {}
        told = note if isinstance(note, dict) else {}
        return {**super().protocol(), **{key: value for key, value in told.items() if key not in PLACES}}

    def read(self, start: int, stop: int) -> Iterator[Pictures]:
        from PIL import Image

        reader = Reader(f"folder {str(self.path)!r}", self.say)

        def one(file: Path) -> Pictures:
            try:
                with Image.open(file) as image:
                    image.load()
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise EvaluationError(
                    f"image {str(file)!r} cannot be read: {reason}; remove it or make it again"
                ) from error
            return reader.picture(image, f"image {str(file)!r}")

        return stacked(one(file) for file in self.files[start:stop])


def below(folder: Path, inside: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files in a folder and the folders below it, through links too, unless one leads back to where it lies."""
    here = folder.resolve()
    if here in inside:
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise EvaluationError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            yield from below(entry, inside | {here})
        elif entry.is_file():
            yield entry


def natural(path: str) -> tuple[list[str | int], str]:
    """What to sort paths by, so that they come in the order in which they were numbered.

    >>> sorted(["b/1.png", "a/10.png", "a/9.png"], key=natural)
    ['a/9.png', 'a/10.png', 'b/1.png']
    """
    parts = re.split("([0-9]+)", path)  # text and digits in turns
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path


def files_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A hash of the files' paths below a folder, their sizes and the times they were written."""
    total = hashlib.sha256()
    for file in files:
        state = file.stat()
        row = f"{file.relative_to(root).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n"
        total.update(row.encode("utf-8", "surrogateescape"))
    return total.hexdigest()
