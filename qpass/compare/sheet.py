"""A comparison as rows and columns. Figures that were measured differently never share a column without a note."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from qpass.compare.seeds import over_seeds
from qpass.protocol import differences
from qpass.report.human import NONE, duration, number

ORIGINAL = "original"
Figure = Mapping[str, Any]  # a metric as `report.json` has it
Key = tuple[str, str, str]  # its evaluator, its name, and whose it is: "quantized" or "pair"


@attrs.frozen(kw_only=True)
class Column:
    """One metric. Where two evaluators or subjects have one name for theirs, the title says whose it is."""

    key: Key
    title: str
    unit: str

    @property
    def head(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """One cell, or the original of one model. `figures` are its metrics by column; `error` says why it has none."""

    model: str
    recipe: str
    figures: Mapping[Key, Figure] = attrs.field(factory=dict)
    seconds: float | None = None
    peak_memory_mb: float | None = None
    error: str | None = None

    @property
    def title(self) -> str:
        return f"{self.recipe} on {self.model}"


@attrs.frozen(kw_only=True, eq=False)
class Sheet:
    """Rows in the order of the cells, each model's original first; `marks` point from a figure to its note."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    marks: Mapping[tuple[int, Key], int]  # row and column to the number of a note, from 1

    def heads(self) -> list[str]:
        return ["model", "recipe", *(column.head for column in self.columns), "passes", "process peak (MB)"]

    def texts(self, index: int) -> list[str]:
        """One row as text, a text for each of `heads`."""
        row = self.rows[index]
        figures = [self._text(index, column) for column in self.columns]
        seconds = duration(row.seconds) if row.seconds is not None else ""
        memory = number(row.peak_memory_mb, "MB") if row.peak_memory_mb is not None else ""
        return [row.model, row.recipe, *figures, seconds, memory]

    def _text(self, index: int, column: Column) -> str:
        figure = self.rows[index].figures.get(column.key)
        if figure is None:
            return ""
        text = number(figure["value"], column.unit) if figure["value"] is not None else NONE
        if figure.get("spread"):
            text += f" ± {number(figure['spread'], column.unit)}"
        mark = self.marks.get((index, column.key))
        return f"{text} [{mark}]" if mark else text


def sheet(cells: Sequence[Mapping[str, Any]]) -> Sheet:
    """The sheet of the cells of a comparison, as its document has them; those that differ in seed share a row."""
    merged = over_seeds(cells)
    columns = _columns(merged)
    rows = tuple(_rows(merged, columns))
    notes, marks = _notes(rows, columns)
    return Sheet(columns=columns, rows=rows, notes=(*notes, *_remarks(cells)), marks=marks)


def _figures(cell: Mapping[str, Any]) -> list[Figure]:
    return [*cell["metrics"], *(cell["timed"] or ())]


def _columns(cells: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Every metric of a quantized model or of a pair, in the order in which they are first met."""
    units: dict[Key, str] = {}
    for cell in cells:
        for figure in _figures(cell):
            if figure["subject"] != ORIGINAL:
                units.setdefault((figure["evaluator"], figure["name"], figure["subject"]), figure["unit"])
    names = [name for _, name, _ in units]
    return tuple(
        Column(
            key=key,
            title=key[1] if names.count(key[1]) == 1 else f"{key[1]} of {key[2]}, {key[0]}",
            unit=unit,
        )
        for key, unit in units.items()
    )


def _rows(cells: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Iterator[Row]:
    for model in dict.fromkeys(cell["model"] for cell in cells):
        own = [cell for cell in cells if cell["model"] == model]
        yield from _originals(model, own, columns)
        for cell in own:
            yield Row(
                model=model,
                recipe=cell["recipe"],
                figures={
                    (figure["evaluator"], figure["name"], figure["subject"]): figure
                    for figure in _figures(cell)
                    if figure["subject"] != ORIGINAL
                },
                seconds=cell["seconds"],
                peak_memory_mb=cell["peak_memory_mb"],
                error=cell["error"],
            )


def _originals(model: str, cells: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Iterator[Row]:
    """The original's figures: one row, and another wherever a recipe has measured the original differently."""
    kept: list[dict[Key, Figure]] = []
    keys = {column.key[:2]: column.key for column in reversed(columns) if column.key[2] != "pair"}
    for cell in cells:
        for figure in _figures(cell):
            key = keys.get((figure["evaluator"], figure["name"]))
            if key is None or figure["subject"] != ORIGINAL:
                continue
            for row in kept:
                if not differences(row.setdefault(key, figure)["protocol"], figure["protocol"]):
                    break
            else:
                kept.append({key: figure})
    for figures in kept:
        yield Row(model=model, recipe=ORIGINAL, figures=figures)


def _notes(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[str], dict[tuple[int, Key], int]]:
    """What is unlike the first figure of its column. Figures with one difference between them share a note."""
    found: dict[str, dict[tuple[int, Key], Column]] = {}
    for column in columns:
        present = [(index, row.figures[column.key]) for index, row in enumerate(rows) if column.key in row.figures]
        for index, figure in present[1:]:
            first = present[0][1]
            unlike = differences(figure["protocol"], first["protocol"])
            unlike += [
                f"{field} {figure[field]!r} against {first[field]!r}"
                for field in ("unit", "better")
                if figure[field] != first[field]
            ]
            if unlike:
                text = f"measured unlike {rows[present[0][0]].title}: {'; '.join(unlike)}"
                found.setdefault(text, {})[index, column.key] = column
    marks = {place: mark for mark, places in enumerate(found.values(), 1) for place in places}
    notes = [
        f"[{mark}] {', '.join(dict.fromkeys(column.title for column in places.values()))} of "
        f"{', '.join(_whose(rows, places))}: {text}"
        for mark, (text, places) in enumerate(found.items(), 1)
    ]
    return notes, marks


def _whose(rows: Sequence[Row], places: Collection[tuple[int, Key]]) -> Iterator[str]:
    """The rows of these figures; where they are all that a model has in these columns, the model alone."""
    keys = {key for _, key in places}
    named = {index for index, _ in places}
    for model in dict.fromkeys(rows[index].model for index in sorted(named)):
        own = [index for index, row in enumerate(rows) if row.model == model and not keys.isdisjoint(row.figures)]
        if len(own) > 1 and named.issuperset(own):
            yield f"all on {model}"
        else:
            yield from (rows[index].title for index in own if index in named)


def _remarks(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What else a reader must know of the figures."""
    alike = Counter((cell["recipe"], cell["model"]) for cell in cells)
    several = max(alike.values(), default=1) > 1
    done = [cell for cell in cells if cell["status"] == "done"]
    if max(Counter((cell["recipe"], cell["model"]) for cell in done).values(), default=1) > 1:
        seeds = ", ".join(str(seed) for seed in sorted({cell["seed"] for cell in done}))
        yield f"figures are means over the seeds {seeds} ± their standard deviation, where they are not all equal"
    for cell in cells:
        title = f"{cell['recipe']} on {cell['model']}" + (f", seed {cell['seed']}" if several else "")
        if cell["status"] == "failed":
            yield f"{title} failed: {cell['error']}"
        elif cell["status"] == "waiting":
            yield f"{title} has not been carried out yet"
        elif cell["resumed"]:
            yield f"{title} was interrupted: its process peak is without what was being done then"
        if begun := cell["resumed_passes"]:
            yield f"{title}: passes is without the time of what had been done of {', '.join(begun)} before"
    if any(cell["seconds"] is not None for cell in cells):
        yield (
            "passes: their own time, without sampling the original, which cells of one model share. Process peak: "
            "memory of the cell's process, evaluation included; the first cell of a model also samples the original. "
            "Where a cell took the first passes' results from another, their time and peak count as if it were its own"
        )
