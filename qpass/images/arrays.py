"""Images in a NumPy file: .npy, or the first fitting array of an .npz, read in pieces and never whole."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from qpass.evaluator import EvaluationError
from qpass.images.contract import Images, Pictures, Say
from qpass.images.pixels import Reader, checked_array

KEYS = ("arr_0", "images")  # ADM's reference batches have the first
PIECE = 64


class ArrayImages(Images):
    """uint8 of N x H x W x 3. One channel, or none, is repeated to three; an opaque fourth is dropped."""

    def __init__(self, path: Path, say: Say) -> None:
        self.path, self.say = path, say
        self.label = f"file {str(path)!r}"
        with self._opened() as file:
            self.shape, self.dtype = self._header(file)
        self._check()

    @property
    def name(self) -> str:
        return self.path.stem

    def __len__(self) -> int:
        return self.shape[0]

    def fingerprint(self) -> str:
        state = self.path.stat()
        return hashlib.sha256(f"{self.path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()

    def read(self, start: int, stop: int) -> Iterator[Pictures]:
        reader = Reader(self.label, self.say)
        for first, piece in self._pieces(start, stop):
            yield checked_array(piece, first, self.label, reader)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        shape = self.shape if len(self.shape) == 4 else (*self.shape, 1)
        bytes_each = int(np.prod(shape[1:])) * self.dtype.itemsize
        with self._opened() as file:
            self._header(file)
            file.seek(start * bytes_each, 1)
            for first in range(start, stop, PIECE):
                count = min(PIECE, stop - first)
                try:
                    raw = file.read(count * bytes_each)
                except (zipfile.BadZipFile, OSError, EOFError) as error:
                    raise EvaluationError(f"{self.label} is damaged near image {first}: {error}") from error
                if len(raw) < count * bytes_each:
                    raise EvaluationError(
                        f"{self.label} is cut short: it ends within image {first} to {first + count}"
                    )
                yield first, np.frombuffer(bytearray(raw), self.dtype).reshape(count, *shape[1:])

    def _opened(self) -> IO[bytes]:
        try:
            if self.path.suffix.lower() == ".npy":
                return self.path.open("rb")
            archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise EvaluationError(f"{self.label} cannot be read: {error}") from error
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        for key in KEYS:
            if key in keys:
                return archive.open(f"{key}.npy")
        wanted = " or ".join(map(repr, KEYS))
        raise EvaluationError(
            f"{self.label} must hold images as {wanted}; it holds {', '.join(keys) or 'nothing'}"
        )

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise EvaluationError(f"{self.label} is no NumPy array: {error}") from error
        if fortran and len(shape) > 1:
            raise EvaluationError(f"{self.label} is stored column by column; save np.ascontiguousarray(images)")
        return shape, dtype

    def _check(self) -> None:
        shape = " x ".join(map(str, self.shape)) or "no axes"
        if len(self.shape) == 4 and self.shape[1] in (1, 3) and self.shape[3] not in (1, 3, 4):
            raise EvaluationError(f"{self.label}: channels come last, but the array is {shape}; transpose it")
        if len(self.shape) not in (3, 4) or (len(self.shape) == 4 and self.shape[3] not in (1, 3, 4)):
            raise EvaluationError(f"{self.label}: images must be N x H x W x 3, not {shape}")
        if not self.shape[0]:
            raise EvaluationError(f"{self.label} holds no images: its array is {shape}")
        if self.dtype == np.uint8:
            return
        if np.issubdtype(self.dtype, np.floating):
            for first, piece in self._pieces(0, len(self)):  # names the image that holds NaN, if one does
                checked_array(piece, first, self.label, Reader(self.label, self.say))
        raise EvaluationError(
            f"{self.label}: images must be uint8, not {self.dtype}; round them to 0..255 as a saved PNG would be"
        )
