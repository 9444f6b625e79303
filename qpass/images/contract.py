"""The contract of a source of images: uint8 of N x H x W x 3, in batches, from any place on; all of one size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import attrs
import numpy as np

Pictures = np.ndarray[Any, Any]  # uint8, N x H x W x 3
Say = Callable[[str], None]


class Images(ABC):
    """Images in a fixed order. Only one batch is ever in memory."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call them."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are; known without reading them."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes when they do, made without reading them all: under it, partial results are kept."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Pictures]:
        """The images from number `start` to `stop` - 1, in pieces of any length; none beyond is looked at."""

    def batches(self, size: int, start: int = 0) -> Iterator[Pictures]:
        """The images from number `start` on, `size` at a time; the last batch may be shorter."""
        return cut(self.read(start, len(self)), size)

    def protocol(self) -> Mapping[str, Any]:
        """What a figure depends on besides the pixels: how many, and for images drawn from a model how."""
        return {"images": len(self)}


@attrs.frozen(eq=False)
class First(Images):
    """The first `count` of some images."""

    images: Images
    count: int

    @property
    def name(self) -> str:
        return f"the first {self.count} of {self.images.name}"

    def __len__(self) -> int:
        return min(self.count, len(self.images))

    def fingerprint(self) -> str:
        return f"{self.images.fingerprint()}[:{self.count}]"

    def read(self, start: int, stop: int) -> Iterator[Pictures]:
        return self.images.read(start, min(stop, len(self)))

    def protocol(self) -> Mapping[str, Any]:
        return {**self.images.protocol(), "images": len(self)}


def cut(pieces: Iterable[Pictures], size: int) -> Iterator[Pictures]:
    """The same images in batches of `size`.

    >>> [len(batch) for batch in cut([np.zeros((n, 1, 1, 3), np.uint8) for n in (2, 3, 2)], 4)]
    [4, 3]
    """
    kept: list[Pictures] = []
    have = 0
    for piece in pieces:
        kept.append(piece)
        have += len(piece)
        while have >= size:
            whole = np.concatenate(kept) if len(kept) > 1 else kept[0]
            yield whole[:size]
            kept, have = [whole[size:]], have - size
    if have:
        yield np.concatenate(kept)


def stacked(images: Iterable[Pictures], size: int = 64) -> Iterator[Pictures]:
    """Single images, H x W x 3, in pieces of `size`."""
    source = iter(images)
    while piece := list(islice(source, size)):
        yield np.stack(piece)
