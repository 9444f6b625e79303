"""One tensor for each calibration row: in memory while a budget lasts, then in files."""

from __future__ import annotations

import itertools
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from qpass.files import UNFINISHED, storage
from qpass.manager import PassContext

LARGEST = 2.0**14  # values above this are not trusted to fp16, whose range ends at 2^16


class Rows(ABC):
    """N tensors of one shape, written in order and read at random."""

    @abstractmethod
    def write(self, start: int, values: Tensor) -> None:
        """Set the rows from `start` on."""

    @abstractmethod
    def read(self, index: Tensor) -> Tensor:
        """Some of the rows, on the CPU."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory or the file back."""


class MemoryRows(Rows):
    """Rows in memory."""

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.pool, self.values = pool, torch.empty(shape, dtype=dtype)
        pool.used += self.values.nbytes

    def write(self, start: int, values: Tensor) -> None:
        self.values[start : start + len(values)] = values

    def read(self, index: Tensor) -> Tensor:
        return self.values[index]

    def close(self) -> None:
        self.pool.used -= self.values.nbytes
        self.values = self.values.new_empty(0)


class FileRows(Rows):
    """Rows in a file, floating-point ones in fp16 while its range lasts.

    Read by calls, not mapped: mapped pages count as memory.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, kept: torch.dtype) -> None:
        self.path, self.shape, self.dtype, self.kept = path, shape, dtype, kept
        self.stride = torch.empty(shape[1:], dtype=kept, device="meta").nbytes
        self.written = 0  # rows, from the first on
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def write(self, start: int, values: Tensor) -> None:
        narrow = values.to(self.kept)
        if self.kept != self.dtype and bool((narrow.isinf() & values.isfinite()).any()):
            self._widen()
            narrow = values
        raw = narrow.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        with storage(self.path):
            os.pwrite(self.file, raw, start * self.stride)
        self.written = max(self.written, start + len(values))

    def read(self, index: Tensor) -> Tensor:
        values = torch.empty((len(index), *self.shape[1:]), dtype=self.kept)
        bytes_ = values.view(len(index), -1).view(torch.uint8).numpy()
        with storage(self.path):
            for place, row in enumerate(index.tolist()):
                os.preadv(self.file, [bytes_[place]], row * self.stride)
        return values.to(self.dtype)

    def _widen(self) -> None:
        """Keep rows as they are from now on, those that are there already included."""
        wide = FileRows(self.path.with_suffix(".wide"), self.shape, self.dtype, self.dtype)
        for index in runs(self.written, 32):
            wide.write(int(index[0]), self.read(index))
        self.close()
        self.path, self.kept, self.stride, self.file = wide.path, wide.kept, wide.stride, wide.file

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
            self.path.unlink(missing_ok=True)


class Pool:
    """Makes rows: in memory up to `budget` bytes, in files under `folder` beyond it.

    As a context it takes the folder with it when it ends, however it ends. What a killed process left, the next run
    in its folder sweeps away: see `scratch_pool`.
    """

    def __init__(self, budget: int, folder: Path) -> None:
        self.budget, self.folder = budget, folder
        self.used = 0
        self._names = itertools.count()
        self._files: list[FileRows] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def rows(self, count: int, like: Tensor, largest: float) -> Rows:
        """Room for `count` tensors such as one row of `like`, whose greatest value is near `largest`."""
        shape = (count, *like.shape[1:])
        size = count * like[0].nbytes
        if self.used + size <= self.budget:
            return MemoryRows(self, shape, like.dtype)
        path = self.folder / f"rows-{next(self._names)}.bin"
        made = FileRows(path, shape, like.dtype, file_dtype(like, largest))
        self._files.append(made)
        return made


def file_dtype(like: Tensor, largest: float) -> torch.dtype:
    """What a file holds: half the bytes where fp16 has room for the values."""
    return torch.float16 if like.dtype == torch.float32 and largest < LARGEST else like.dtype


def file_bytes(like: Tensor, largest: float) -> int:
    """What one row of `like` takes in a file."""
    return torch.empty(like.shape[1:], dtype=file_dtype(like, largest), device="meta").nbytes


def scratch_pool(ctx: PassContext, beside: int = 0) -> Pool:
    """The rows of a pass: at most half the memory budget, and less where `beside` them so many bytes are needed.

    These count twice, as an allocator holds on to about as much again, and a quarter is left to what nobody counts.
    The folder's name says that it holds nothing to keep.
    """
    budget = min(ctx.memory_budget // 2, ctx.memory_budget - ctx.memory_budget // 4 - 2 * beside)
    return Pool(max(0, budget), ctx.scratch / f"{UNFINISHED}rows")


def runs(count: int, size: int) -> Iterator[Tensor]:
    """The numbers 0 to count - 1 in order, `size` at a time.

    >>> [r.tolist() for r in runs(5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    for start in range(0, count, size):
        yield torch.arange(start, min(start + size, count))
