"""What a pass may put among its notes for the report to draw: curves, cells of a table by colour, bars by name.

They are plain data, so that they stand in `report.json` like any other note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Numbers = Mapping[float, float]


def curves(of: Mapping[str, Numbers], *, x: str, y: str) -> dict[str, Any]:
    """A line for each name.

    >>> curves({"round 1": {981: 0.5, 1: 2.0}}, x="timestep", y="distance")
    {'figure': 'curves', 'x': 'timestep', 'y': 'distance', 'of': [['round 1', [[981, 0.5], [1, 2.0]]]]}
    """
    return {"figure": "curves", "x": x, "y": y, "of": _pairs(of)}


def cells(of: Mapping[str, Numbers], *, x: str, above: str, below: str) -> dict[str, Any]:
    """A row for each name, its cells in one colour above zero and in another below, said in words."""
    return {"figure": "cells", "x": x, "above": above, "below": below, "of": _pairs(of)}


def bars(of: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A bar for each name, the longest first; in colours by what they are of, such as what changed and what did not.

    >>> bars({"raised": {"conv_in": 0.5}, "left": {"conv_out": 0.1}})
    {'figure': 'bars', 'of': [['raised', [['conv_in', 0.5]]], ['left', [['conv_out', 0.1]]]]}
    """
    return {"figure": "bars", "of": _pairs(of)}


def is_figure(note: object) -> bool:
    """Whether a note was made by one of these.

    >>> is_figure(cells({}, x="timestep", above="more", below="less")), is_figure({"figure": 3})
    (True, False)
    """
    if not isinstance(note, Mapping):
        return False
    return note.get("figure") in ("curves", "cells", "bars") and isinstance(note.get("of"), list)


def _pairs(of: Mapping[str, Mapping[Any, float]]) -> list[list[Any]]:
    """Lists, as the report's JSON sorts the keys of a table."""
    return [[name, [[at, value] for at, value in numbers.items()]] for name, numbers in of.items()]
