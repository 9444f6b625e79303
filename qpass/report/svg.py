"""Series as inline SVG: a line over numbers, a lollipop per name, a cell per name and number.

Colours are the page's. Points that are not finite are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from qpass.evaluator import Series
from qpass.report.human import aligned, number

Curves = Mapping[str, Series]  # by role: "original", "quantized"
Point = tuple[float, float]

LINE_HEIGHT = 270
LEFT, RIGHT, TOP, BOTTOM = 60, 540, 20, 220  # the line plot's frame; a wide one reaches RIGHT_WIDE
RIGHT_WIDE = 1140
COLUMN, ROW, HEAD = 560, 18, 26  # one column of lollipops, one of its rows, the room for its axis
START, END = 244, 500  # a lollipop's axis within its column; names stand before it, values after
GAP, MOST_ROWS = 40, 20  # between columns, and in the only one
_NAME = 37  # characters of a name that fit before the axis
ROLES = ("original", "quantized")  # what has a colour of its own
NAMED = 6  # colours that other lines take in turn


def ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`.

    >>> ticks(12, 28), ticks(0, 1), ticks(3, 3)
    ((10.0, 15.0, 20.0, 25.0, 30.0), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (2.0, 2.5, 3.0, 3.5, 4.0))
    """
    raw = high / count - low / count
    if raw <= 1e-12 * max(abs(low), abs(high), 1e-280):
        pad = max(abs(low) / 4, 1e-280) if low else 1.0
        low, high, raw = low - pad, high + pad, 2 * pad / count
    power = math.floor(math.log10(raw))
    digits = next((d for d in (1, 2, 5) if d * 10.0**power >= raw * (1 - 1e-9)), 10)
    step = float(f"{digits}e{power}")
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{k * step:.12g}") for k in range(first, last + 1))


def place(value: float, low: float, high: float, start: float, end: float) -> float:
    """Where `value` of the range low..high lies between `start` and `end`.

    >>> place(15, 10, 30, 220, 20)
    170.0
    """
    return round(start + (end - start) * (value - low) / (high - low), 2)


def line(curves: Curves, title: str, right: int = RIGHT) -> Markup:
    """One line per role over a numeric x; a point that is not finite breaks the line."""
    drawn = [point for series in curves.values() for point in _points(series) if _finite(point)]
    if not drawn:
        return Markup("")
    xs = [x for x, _ in drawn]
    low, high = min(xs), max(xs)
    below, *_, above = heights = ticks(min(y for _, y in drawn), max(y for _, y in drawn))
    if low == high:
        low, *_, high = ticks(low, high)
    some = next(iter(curves.values()))

    def at(point: Point) -> Point:
        return place(point[0], low, high, LEFT, right), place(point[1], below, above, BOTTOM, TOP)

    parts = [_grid_y(y, at((low, y))[1], right) for y in heights]
    along = ticks(low, high, (right - LEFT) // 80)
    parts += [_tick_x(x, at((x, below))[0]) for x in along if low <= x <= high]
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + right) // 2, LINE_HEIGHT - 6, some.x_label
        )
    )
    parts.append(Markup('<text class="label" x="{}" y="10">{}</text>').format(LEFT, some.y_label))
    for index, (role, series) in enumerate(curves.items()):
        for run in _runs(_points(series)):
            path = " ".join(f"{x:g},{y:g}" for x, y in map(at, run))
            parts.append(Markup('<polyline class="curve {}" points="{}"/>').format(_style(role, index), path))
        parts += [_dot(role, point, at(point)) for point in _points(series) if _finite(point)]
    return _svg("line", right + 20, LINE_HEIGHT, title, parts)


def lollipops(curves: Curves, title: str, *, lowest_first: bool = True) -> Markup:
    """One row per name, the worst first, in two columns when there are many; values on one axis from zero.

    Where a name has several values the last one counts: the quantized model's, which comes after the original's.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for role, series in curves.items():
        names: list[str] = []
        for x, y in zip(series.x, series.y, strict=True):
            names.append(str(x))
            if math.isfinite(y):
                found.setdefault((str(x), names.count(str(x))), {})[role] = y
    if not found:
        return Markup("")

    def rank(row: tuple[tuple[str, int], dict[str, float]]) -> tuple[float, tuple[str, int]]:
        worst = _last(row[1])
        return worst if lowest_first else -worst, row[0]

    styles = {role: _style(role, index) for index, role in enumerate(curves)}
    rows = sorted(found.items(), key=rank)
    values = [y for _, ys in rows for y in ys.values()]
    marks = ticks(min(0.0, *values), max(0.0, *values), 4)
    texts = aligned([_last(ys) for _, ys in rows])
    split = 1 if len(rows) <= MOST_ROWS else 2
    deep = -(-len(rows) // split)
    width, height = split * (COLUMN + GAP) - GAP, HEAD + deep * ROW + 4
    parts: list[Markup] = []
    for column in range(split):
        left = column * (COLUMN + GAP)
        parts += [_grid_x(m, left + place(m, marks[0], marks[-1], START, END), height) for m in marks]
        for index, ((name, _), ys) in enumerate(rows[column * deep : (column + 1) * deep]):
            at = {role: left + place(y, marks[0], marks[-1], START, END) for role, y in ys.items()}
            zero = left + place(0.0, marks[0], marks[-1], START, END)
            said = texts[column * deep + index]
            y = HEAD + index * ROW + ROW // 2
            parts.append(_lollipop(name, ys, {styles[r]: x for r, x in at.items()}, said, zero, left, y))
    return _svg("lollipops", width, height, title, parts)


def cells(curves: Curves, title: str) -> Markup:
    """A row for each name and a column for each number: one colour above zero, another below, full at the most."""
    values = [y for series in curves.values() for y in series.y if math.isfinite(y)]
    most = max((abs(y) for y in values), default=0.0) or 1.0
    columns = sorted({float(x) for series in curves.values() for x in series.x})
    if not values:
        return Markup("")
    wide = (RIGHT_WIDE - START) / len(columns)
    some = next(iter(curves.values()))
    parts = [Markup('<text class="label" x="{}" y="12">{}</text>').format(START, some.x_label)]
    apart = max(1, math.ceil(44 / wide))  # room for a column's number
    text = '<text class="tick" x="{:g}" y="{}" text-anchor="middle">{}</text>'
    for column, at in list(enumerate(columns))[::apart]:
        parts.append(Markup(text).format(START + (column + 0.5) * wide, HEAD + 4, number(at)))
    for row, (name, series) in enumerate(curves.items()):
        top = HEAD + 10 + row * ROW
        parts.append(_name_of(name, START - 8, top + ROW // 2 + 4))
        for x, y in zip(series.x, series.y, strict=True):
            if math.isfinite(y):
                left = START + columns.index(float(x)) * wide
                parts.append(_cell(name, float(x), y, abs(y) / most, (left, top, wide - 1, ROW - 1)))
    return _svg("cells", RIGHT_WIDE + 20, HEAD + 14 + len(curves) * ROW, title, parts)


def skipped(series: Series) -> tuple[str, ...]:
    """The points that no plot shows, as they are not finite.

    >>> skipped(Series(title="", x=("a", "b"), y=(1.0, float("inf"))))
    ('b (inf)',)
    """
    return tuple(f"{x} ({y})" for x, y in zip(series.x, series.y, strict=True) if not math.isfinite(y))


def _style(role: str, index: int) -> str:
    """The class that a role's colour hangs on."""
    return role if role in ROLES else f"n{index % NAMED}"


def _last(values: Mapping[str, float]) -> float:
    return list(values.values())[-1]


def _points(series: Series) -> tuple[Point, ...]:
    points = [(float(x), y) for x, y in zip(series.x, series.y, strict=True)]
    return tuple(sorted(points, key=lambda point: point[0]))


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _runs(points: Sequence[Point]) -> Iterable[list[Point]]:
    """The points as stretches without a gap."""
    run: list[Point] = []
    for point in points:
        if _finite(point):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _svg(kind: str, width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="plot {}" viewBox="0 0 {} {}" role="img" aria-label="{}">\n{}\n</svg>').format(
        kind, width, height, title, Markup("\n").join(parts)
    )


def _grid_y(value: float, y: float, right: int) -> Markup:
    rule = '<line class="rule" x1="{}" y1="{:g}" x2="{}" y2="{:g}"/>'
    text = '<text class="tick" x="{}" y="{:g}" text-anchor="end">{}</text>'
    return Markup(rule + text).format(LEFT, y, right, y, LEFT - 8, y + 4, number(value))


def _tick_x(value: float, x: float) -> Markup:
    text = '<text class="tick" x="{:g}" y="{}" text-anchor="middle">{}</text>'
    return Markup(text).format(x, BOTTOM + 18, number(value))


def _dot(role: str, point: Point, at: Point) -> Markup:
    text = '<g class="point {}"><title>{}: {} at {}</title><circle class="hit" cx="{:g}" cy="{:g}" r="10"/>'
    dot = '<circle class="dot" cx="{:g}" cy="{:g}" r="2.5"/></g>'
    return Markup(text + dot).format(role, role, number(point[1]), number(point[0]), *at, *at)


def _grid_x(value: float, x: float, height: int) -> Markup:
    rule = '<line class="rule{}" x1="{:g}" y1="{}" x2="{:g}" y2="{}"/>'
    text = '<text class="tick" x="{:g}" y="{}" text-anchor="middle">{}</text>'
    zero = "" if value else " zero"
    return Markup(rule + text).format(zero, x, HEAD - 6, x, height, x, HEAD - 12, number(value))


def _lollipop(
    name: str, values: Mapping[str, float], at: Mapping[str, float], text: str, zero: float, left: int, y: int
) -> Markup:
    said = ", ".join(f"{role} {value:.6g}" for role, value in values.items())
    last, end = list(at.items())[-1]
    short = _short(name)
    back = '<g class="row"><title>{}: {}</title><rect class="hit" x="{}" y="{}" width="{}" height="{}"/>'
    label = '<text class="name" x="{}" y="{}" text-anchor="end">{}</text>'
    stem = '<line class="stem {}" x1="{:g}" y1="{}" x2="{:g}" y2="{}"/>'
    value = '<text class="value" x="{}" y="{}" text-anchor="end">{}</text></g>'
    return Markup("").join(
        (
            Markup(back).format(name, said, left, y - ROW // 2, COLUMN, ROW),
            Markup(label).format(left + START - 12, y + 4, short),
            Markup(stem).format(last, zero, y, end, y),
            *(Markup('<circle class="dot {}" cx="{:g}" cy="{}" r="4"/>').format(r, x, y) for r, x in at.items()),
            Markup(value).format(left + COLUMN, y + 4, text),
        )
    )


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[:14]}…{name[15 - _NAME :]}"


def _name_of(name: str, x: float, y: float) -> Markup:
    text = '<text class="name" x="{:g}" y="{:g}" text-anchor="end">{}</text>'
    return Markup(text).format(x, y, _short(name))


def _cell(name: str, x: float, y: float, share: float, box: tuple[float, float, float, float]) -> Markup:
    text = '<g><title>{}: {} at {}</title><rect class="cell {}" x="{:g}" y="{:g}" width="{:g}" height="{:g}" '
    return Markup(text + 'fill-opacity="{:.3f}"/></g>').format(
        name, number(y), number(x), "above" if y > 0 else "below", *box, max(0.06, share)
    )
