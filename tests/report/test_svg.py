from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from qpass.evaluator import Series
from qpass.report import svg


def curve(x: tuple[float | str, ...], y: tuple[float, ...]) -> dict[str, Series]:
    return {"quantized": Series(title="t", x=x, y=y, x_label="x", y_label="y")}


def test_a_line_through_two_points_lies_where_it_should() -> None:
    """Frame 60..540 by 220..20; ticks of 12..28 are 10..30, so 12 is a tenth up and 28 nine tenths."""
    drawn = ElementTree.fromstring(svg.line(curve((0, 100), (12, 28)), "t"))
    (line,) = drawn.iter("polyline")
    assert line.attrib["points"] == "60,200 540,40"
    dots = [c for c in drawn.iter("circle") if c.attrib["class"] == "dot"]
    assert [(c.attrib["cx"], c.attrib["cy"]) for c in dots] == [("60", "200"), ("540", "40")]
    rules = [rule.attrib["y1"] for rule in drawn.iter("line")]
    assert rules == ["220", "170", "120", "70", "20"]


def test_lollipops_stand_on_zero_and_the_worst_comes_first() -> None:
    """Axis 244..500 for ticks 0..40: 10 is at 308 and 40 at 500; rows are 18 high below a head of 26."""
    drawn = ElementTree.fromstring(svg.lollipops(curve(("good", "bad"), (40, 10)), "t"))
    assert [t.text for t in drawn.iter("text") if t.attrib["class"] == "name"] == ["bad", "good"]
    stems = [s for s in drawn.iter("line") if s.attrib["class"].startswith("stem")]
    assert [(s.attrib["x1"], s.attrib["x2"], s.attrib["y1"]) for s in stems] == [
        ("244", "308", "35"),
        ("244", "500", "53"),
    ]
    assert [t.text for t in drawn.iter("title")] == ["bad: quantized 10", "good: quantized 40"]


def test_cells_stand_in_rows_and_columns_and_are_as_full_as_they_are_far_from_zero() -> None:
    """Two columns of 244..1140 are 448 wide; 4 is the most, so -1 is a quarter full; what is not finite is absent."""
    curves = {
        "a": Series(title="t", x=(981, 1), y=(4.0, -1.0), x_label="timestep"),
        "b": Series(title="t", x=(1, 981), y=(math.inf, -2.0), x_label="timestep"),
    }
    drawn = ElementTree.fromstring(svg.cells(curves, "t"))
    cells = [r.attrib for r in drawn.iter("rect")]
    assert [(c["class"], c["x"], c["y"], c["fill-opacity"]) for c in cells] == [
        ("cell above", "692", "36", "1.000"),
        ("cell below", "244", "36", "0.250"),
        ("cell below", "692", "54", "0.500"),
    ]
    assert [t.text for t in drawn.iter("title")] == ["a: 4 at 981", "a: -1 at 1", "b: -2 at 981"]
    assert svg.cells(curve((1,), (math.nan,)), "t") == ""


def test_lines_of_other_names_have_colours_of_their_own() -> None:
    """In turn; the original and the quantized keep theirs."""
    names = ["round 1", "quantized", "round 2"]
    drawn = ElementTree.fromstring(svg.line({n: Series(title="t", x=(0, 1), y=(0, 1)) for n in names}, "t"))
    assert [p.attrib["class"] for p in drawn.iter("polyline")] == ["curve n0", "curve quantized", "curve n2"]


def test_where_less_is_better_the_highest_comes_first() -> None:
    """The order turns round with the direction of the metric."""
    drawn = ElementTree.fromstring(svg.lollipops(curve(("a", "b"), (1, 2)), "t", lowest_first=False))
    assert [t.text for t in drawn.iter("text") if t.attrib["class"] == "name"] == ["b", "a"]


def test_a_point_that_is_not_finite_breaks_the_line_and_is_named() -> None:
    """Five points, the third of them NaN: two stretches of two points, four dots, one point named."""
    curves = curve((0, 1, 2, 3, 4), (1, 2, math.nan, 4, 5))
    drawn = ElementTree.fromstring(svg.line(curves, "t"))
    assert [len(line.attrib["points"].split()) for line in drawn.iter("polyline")] == [2, 2]
    assert len([c for c in drawn.iter("circle") if c.attrib["class"] == "dot"]) == 4
    assert svg.skipped(curves["quantized"]) == ("2 (nan)",)
    assert "nan" not in str(svg.line(curves, "t"))


def test_nothing_finite_draws_nothing() -> None:
    """No axes are made up for a curve without a point."""
    assert svg.line(curve((0.0,), (math.inf,)), "t") == ""
    assert svg.lollipops(curve(("a",), (math.nan,)), "t") == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (5, 5), (-3, 7), (1e17, 1e17 + 16), (0, 5e-324), (-1e308, 1e308)]
)
def test_ticks_enclose_any_range_in_a_few_steps(low: float, high: float) -> None:
    """However wide or narrow the range: ascending, finite, at most ten, and nothing lies outside."""
    found = svg.ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert list(found) == sorted(set(found))
    assert 2 <= len(found) <= 10


def test_many_rows_take_two_columns_and_equal_names_stay_apart() -> None:
    """Thirty values give two columns; a name that occurs twice has two rows."""
    drawn = svg.lollipops(curve(("twice", "twice", *map(str, range(28))), tuple(range(30))), "t")
    assert re.findall(r'viewBox="([^"]*)"', drawn) == ["0 0 1160 300"]
    assert drawn.count(">twice</text>") == 2


def test_names_are_escaped_inside_titles() -> None:
    """A node may be called anything; the drawing parses and holds the name as text."""
    name = "<script>alert(1)</script>\"'&"
    drawn = ElementTree.fromstring(svg.lollipops(curve((name,), (1.0,)), name))
    assert drawn.attrib["aria-label"] == name
    assert next(drawn.iter("title")).text == f"{name}: quantized 1"
    assert not list(drawn.iter("script"))
