"""A comparison for people: a markdown table, and tables as wide as the terminal is."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qpass.compare.sheet import Sheet

NAMES = 2  # columns that say which row it is
GAP = 3  # what rich puts between columns


def markdown(sheet: Sheet) -> str:
    """The sheet as one table, its notes as a list below."""
    heads = sheet.heads()
    lines = [_line(heads), "|" + "---|" * NAMES + "---:|" * (len(heads) - NAMES)]
    lines += [_line(sheet.texts(index)) for index in range(len(sheet.rows))]
    if sheet.notes:
        lines += ["", *(f"- {_cell(note)}" for note in sheet.notes)]
    return "\n".join(lines) + "\n"


def terminal(sheet: Sheet, width: int) -> RenderableType:
    """The sheet in as many tables as the width makes of it, each with the names of the rows."""
    heads = sheet.heads()
    texts = [sheet.texts(index) for index in range(len(sheet.rows))]
    wide = [max(len(row[place]) for row in [heads, *texts]) + GAP for place in range(len(heads))]
    parts: list[RenderableType] = [
        _table(heads, texts, [*range(NAMES), *places])
        for places in portions(wide[NAMES:], width - sum(wide[:NAMES]))
    ]
    return Group(*parts, *(Text(note) for note in sheet.notes))


def portions(wide: list[int], room: int) -> Iterator[list[int]]:
    """Columns, counted from after the names, in portions that fit into the room; one alone may not.

    >>> list(portions([5, 5, 20, 4], 12))
    [[2, 3], [4], [5]]
    """
    portion: list[int] = []
    used = 0
    for place, width in enumerate(wide, NAMES):
        if portion and used + width > room:
            yield portion
            portion, used = [], 0
        portion.append(place)
        used += width
    yield portion


def _table(heads: list[str], texts: list[list[str]], places: list[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place in places:
        table.add_column(Text(heads[place]), justify="left" if place < NAMES else "right", no_wrap=True)
    for row in texts:
        table.add_row(*(Text(row[place]) for place in places))
    return table


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(map(_cell, texts)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
