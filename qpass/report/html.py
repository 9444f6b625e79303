"""One self-contained page: what the run did, what it cost and what quality is left. It loads nothing.

Evaluators are all drawn alike, from what they observed, so a stranger's appears without a line of code here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qpass.evaluator import EvaluationError, Observation, Series
from qpass.figure import is_figure
from qpass.report import svg
from qpass.report.data import plain
from qpass.report.facts import execution, left_alone, lists_floats
from qpass.report.human import duration, number, quantity
from qpass.report.pictures import Picture, difference, picture, shown
from qpass.report.rows import SIZE, rows

_ROLES = ("original", "quantized")
_CARDS = (("sqnr", "Output SQNR", ""), ("psnr", "PSNR", ""), ("packed_ratio", "Packed ratio", "×"))


@attrs.frozen(kw_only=True)
class Card:
    """One headline number, with what puts it in its place."""

    label: str
    value: str
    hint: str


@attrs.frozen(kw_only=True)
class Plot:
    """One curve, or the original's and the quantized model's in one frame."""

    title: str
    drawing: Markup
    roles: tuple[str, ...]  # or other names, each with the class of its colour after a colon
    skipped: tuple[str, ...]
    wide: bool


@attrs.frozen(kw_only=True)
class Gallery:
    """Images of one name, from both models, and how far apart they are."""

    name: str
    pictures: tuple[Picture, ...]
    note: str


def render(
    report: Mapping[str, Any],
    observations: Mapping[str, Mapping[str, Observation]],
    timings: Mapping[str, Any],
) -> str:
    """The page. Equal inputs give equal text, and a report read back from `report.json` is an equal input."""
    report, timings = plain(report), plain(timings)
    measured = rows(report["metrics"])
    names = [name for name in dict.fromkeys(row.evaluator for row in measured) if name in observations]
    names += sorted(set(observations) - set(names))
    sections = [(name, _galleries(seen := observations[name]), _plots(name, report, seen)) for name in names]
    recipe = report["recipe"]
    page = _environment().get_template("template.html.j2")
    html = page.render(
        report=report,
        model=_text_of(recipe.get("model")),
        name=_text_of(recipe.get("name")) or " → ".join(record["pass"] for record in report["records"]),
        cards=_cards(report),
        execution=execution(report),
        sections=[section for section in sections if section[1] or section[2]],
        left_alone=left_alone(report["records"]),
        quality=[row for row in measured if row.name not in SIZE],
        cost=[row for row in measured if row.name in SIZE] + list(rows(timings.get("metrics", ()))),
        figures={record["index"]: _noted(record["notes"]) for record in report["records"]},
        seconds={step["index"]: step["seconds"] for step in timings.get("passes", ())},
        resumed={step["index"] for step in timings.get("passes", ()) if step.get("resumed")},
        total=timings.get("total_seconds"),
        recipe=tomli_w.dumps(_toml(recipe)),
    )
    return html.strip() + "\n"


_FIRST = ("use", "seed", "memory_budget", "model", "sampling", "calibration", "passes", "evaluators")


def _toml(value: Any) -> Any:
    """The value as TOML can hold it, in an order that does not depend on where it was read from."""
    if isinstance(value, Mapping):
        known = {key: place for place, key in enumerate(_FIRST)}
        ordered = sorted(value, key=lambda key: (known.get(key, len(_FIRST)), key))
        return {key: _toml(value[key]) for key in ordered if value[key] is not None}
    if isinstance(value, list | tuple):
        return [_toml(item) for item in value if item is not None]
    return value


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qpass.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, duration=duration)
    environment.globals.update(quantity=quantity, told_apart=_told_apart)
    return environment


def _text_of(table: Any) -> str:
    return str(table.get("use", "")) if isinstance(table, Mapping) else str(table or "")


def _cards(report: Mapping[str, Any]) -> tuple[Card, ...]:
    """The headline numbers: a pair's or the quantized model's, never the original's."""
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for metric in report["metrics"]:
        first.setdefault((metric["name"], metric["subject"]), metric)
    found = []
    for name, label, unit in _CARDS:
        metric = first.get((name, "pair")) or first.get((name, "quantized"))
        if metric is not None:
            hint = f"{metric['better']} is better, by {metric['evaluator']}"
            sizes = [first[key] for role in _ROLES if (key := ("packed_mb", role)) in first]
            if name == "packed_ratio" and len(sizes) == 2:
                hint = " → ".join(quantity(size["value"], size["unit"] or "MB") for size in sizes)
            found.append(Card(label=label, value=quantity(metric["value"], unit or metric["unit"]), hint=hint))
    return tuple(found)


def _galleries(seen: Mapping[str, Observation]) -> tuple[Gallery, ...]:
    names = sorted({name for observation in seen.values() for name in observation.images})
    return tuple(
        gallery
        for name in names
        if (gallery := _gallery(name, {r: seen[r].images[name] for r in _roles(seen) if name in seen[r].images}))
    )


def _gallery(name: str, images: Mapping[str, np.ndarray[Any, Any]]) -> Gallery | None:
    counts = {role: shown(batch, name) for role, batch in images.items()}
    pictures = [picture(images[role][:count], role) for role, count in counts.items() if count]
    notes = [f"first {n} of {len(images[role])} {role}" for role, n in counts.items() if n < len(images[role])]
    if not pictures:
        return None
    pair = [images[role] for role in _ROLES if role in images]
    if len(pair) == 2 and pair[0].shape == pair[1].shape:
        apart, factor = difference(*(batch[: counts["original"]] for batch in pair))
        if apart.any():
            pictures.append(picture(apart, f"difference × {factor}"))
        else:
            notes.append("equal in every value")
    return Gallery(name=name, pictures=tuple(pictures), note=", ".join(notes))


def _plots(evaluator: str, report: Mapping[str, Any], seen: Mapping[str, Observation]) -> tuple[Plot, ...]:
    lower = {m["name"] for m in report["metrics"] if m["evaluator"] == evaluator and m["better"] == "lower"}
    names = sorted({name for observation in seen.values() for name in observation.series})
    found: dict[str, Mapping[str, Series]] = {}
    for name in names:
        curves = {role: seen[role].series[name] for role in _roles(seen) if name in seen[role].series}
        for series in curves.values():
            if len(series.x) != len(series.y):
                raise EvaluationError(
                    f"series {name!r} of evaluator {evaluator!r} has {len(series.x)} x for {len(series.y)} y"
                )
        found[name] = curves
    lone = sum(not _named(curves) for curves in found.values()) == 1
    plots = (
        _plot(curves, lone=lone, lowest_first=not any(metric in name for metric in lower))
        for name, curves in found.items()
    )
    return tuple(sorted(plots, key=lambda plot: not plot.wide))


def _named(curves: Mapping[str, Series]) -> bool:
    return any(isinstance(x, str) for series in curves.values() for x in series.x)


def _plot(curves: Mapping[str, Series], *, lone: bool, lowest_first: bool) -> Plot:
    """Lollipops over names, a line over numbers; a line that stands alone takes the page's width."""
    title = next(iter(curves.values())).title
    if _named(curves):
        wide = max(len(series.x) for series in curves.values()) > svg.MOST_ROWS
        drawing = svg.lollipops(curves, title, lowest_first=lowest_first)
    else:
        wide = lone
        drawing = svg.line(curves, title, svg.RIGHT_WIDE if wide else svg.RIGHT)
    missing = dict.fromkeys(point for series in curves.values() for point in svg.skipped(series))
    return Plot(title=title, drawing=drawing, roles=tuple(curves), skipped=tuple(missing), wide=wide)


def _noted(notes: Mapping[str, Any]) -> tuple[Plot, ...]:
    """What a pass asks to have drawn."""
    found = []
    for title, note in sorted(notes.items()):
        if not is_figure(note):
            continue
        labels = {"x_label": note.get("x", ""), "y_label": note.get("y", "")}
        series = {}
        for name, pairs in note["of"]:
            xs, ys = zip(*pairs, strict=True) if pairs else ((), ())
            values = tuple(float("nan") if y is None else y for y in ys)
            series[name] = Series(title=title, x=xs, y=values, **labels)
        kind = note["figure"]
        roles = [f"{name}:n{index % svg.NAMED}" for index, name in enumerate(series)]
        if kind == "curves":
            drawing = svg.line(series, title)
        elif kind == "bars":
            drawing = svg.lollipops(series, title, lowest_first=False)
        else:
            drawing, roles = svg.cells(series, title), [f"{note['above']}:above", f"{note['below']}:below"]
        found.append(Plot(title=title, drawing=drawing, roles=tuple(roles), skipped=(), wide=kind != "curves"))
    return tuple(found)


def _told_apart(key: str, note: object) -> bool:
    """Whether the page shows this note elsewhere than in the list of a pass's notes."""
    return lists_floats(key, note) or is_figure(note)


def _roles(seen: Mapping[str, Observation]) -> Sequence[str]:
    """The original first, then the quantized model, then whatever else was observed."""
    return sorted(seen, key=lambda role: (_ROLES.index(role) if role in _ROLES else len(_ROLES), role))
