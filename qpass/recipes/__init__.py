"""The recipes that ship, by name. Nothing here needs torch."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
_NAME = re.compile(r"((?:.+-)?)w([2-8])a([2-8])")


def shipped(folder: Path = FOLDER) -> dict[str, Path]:
    """The file of each recipe, in order of name."""
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def bits(name: str) -> tuple[int, int] | None:
    """The bits of weights and of inputs that a recipe's name ends in, if it does.

    >>> bits("brecq-w4a8"), bits("w6a6"), bits("protocol-dit-xl-2")
    ((4, 8), (6, 6), None)
    """
    match = _NAME.fullmatch(name)
    return (int(match[2]), int(match[3])) if match else None


def sibling(name: str, folder: Path = FOLDER) -> Path | None:
    """The recipe of the same method whose bits are nearest, where none has that name: any METHOD-wXaY can be had.

    Bits of weights come first; of two that are as near, the one with more bits for inputs.
    """
    match, wanted = _NAME.fullmatch(name), bits(name)
    if match is None or wanted is None:
        return None
    apart = {
        path: (abs(found[0] - wanted[0]), abs(found[1] - wanted[1]), -found[1])
        for stem, path in shipped(folder).items()
        if (found := bits(stem)) and stem == f"{match[1]}w{found[0]}a{found[1]}"
    }
    return min(apart, key=apart.__getitem__) if apart else None
