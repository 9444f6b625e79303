from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import attrs
import numpy as np
import pytest
from PIL import Image

from qpass.evaluator import EvaluationError, Metric, Observation, Series
from qpass.figure import bars, cells, curves
from qpass.manager import Record
from qpass.report import render, report, to_json
from qpass.report.pictures import columns, difference, grid

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Every element with its attributes, and the text outside of styles and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("style", "script"):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page(example: Any, **changes: Any) -> Page:
    return Page(render(**{**attrs.asdict(example, recurse=False), **changes}))


def empty(*metrics: tuple[str, Metric], records: tuple[Record, ...] = ()) -> dict[str, Any]:
    return report({"model": {"use": "tiny"}}, 0, {}, "cpu", records, metrics)


def test_no_name_or_value_becomes_an_element(example: Any) -> None:
    """A script as every name, option, note, unit, title and key is text: the only script element is ours."""
    record = Record(
        index=1, name=EVIL, options={EVIL: EVIL}, changed=True, notes={EVIL: {EVIL: [EVIL]}, "float": {EVIL: EVIL}}
    )
    metric = Metric(name=EVIL, value=1.0, unit=EVIL, protocol={EVIL: EVIL})
    recipe = {"name": EVIL, "model": {"use": EVIL, "path": EVIL}, "passes": [{"use": EVIL, EVIL: EVIL}]}
    evil = report(recipe, 0, {EVIL: EVIL}, EVIL, [record], [(EVIL, metric)])
    seen = Observation(
        series={
            "names": Series(title=EVIL, x=(EVIL, f'">{EVIL}'), y=(1.0, math.inf), x_label=EVIL, y_label=EVIL),
            "numbers": Series(title=EVIL, x=(0.0, 1.0), y=(1.0, 2.0), x_label=EVIL, y_label=EVIL),
        },
        images={f'"{EVIL}': np.zeros((1, 2, 2, 3), np.uint8)},
    )
    html = render(evil, {EVIL: {"quantized": seen, EVIL: seen}}, {"total_seconds": 1.0})
    assert html.lower().count("<script") == 1
    found = Page(html)
    assert found.count("script") == 1
    assert found.text.count(EVIL) > 25
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in page(example).elements} | {"details", "p"}
    assert not [key for _, fields in found.elements for key in fields if key.startswith("on")]


def test_the_page_loads_nothing(example: Any) -> None:
    """No address of another place; every source is data; the browser is told to refuse the rest."""
    html = render(**attrs.asdict(example, recurse=False))
    assert not re.search(r"https?://|url\(|@import|//cdn", html)
    found = Page(html)
    for _, fields in found.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            assert (fields.get(key) or "data:").startswith(("data:", "#"))
    assert {"link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in found.elements)
    assert any("default-src 'none'" in (fields.get("content") or "") for _, fields in found.elements)


def test_equal_inputs_give_equal_bytes(example: Any) -> None:
    """Drawn twice, with evaluators in another order, and from report.json read back: one page."""
    once = render(**attrs.asdict(example, recurse=False))
    turned = dict(reversed(example.observations.items()))
    assert render(example.report, turned, example.timings) == once
    assert render(json.loads(to_json(example.report)), example.observations, example.timings) == once


def test_a_value_that_is_not_finite_is_a_dash() -> None:
    """It is told apart from a subject that was not measured, whose cell is empty."""
    html = render(empty(("features", Metric(name="kid", value=math.nan))), {}, {})
    assert '<td class="num" data-value="" title="not finite">–</td>' in html
    assert html.count('<td class="num" data-value=""></td>') == 2


def test_the_pictures_hold_exactly_the_pixels(example: Any) -> None:
    """Decoded from the page and cut into tiles, they are the images that were observed."""
    sources = {fields["alt"]: fields["src"] for tag, fields in page(example).elements if tag == "img"}
    for role in ("original", "quantized"):
        images = example.observations["drift"][role].images["samples"]
        png = (sources[f"samples, {role}"] or "").removeprefix("data:image/png;base64,")
        tiles = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        wide = columns(len(images))
        for index, image in enumerate(images):
            top, left = index // wide * 33, index % wide * 33
            tile = tiles[top : top + 32, left : left + 32]
            assert (tile[..., :3] == image).all()
            assert (tile[..., 3] == 255).all()


def test_a_grid_leaves_one_clear_line_between_tiles() -> None:
    """Three white images in two columns: alpha is 0 on the lines and where the fourth would be."""
    alpha = grid(np.full((3, 2, 2, 3), 255, np.uint8), 2)[..., 3] // 255
    assert alpha.tolist() == [[1, 1, 0, 1, 1]] * 2 + [[0] * 5] + [[1, 1, 0, 0, 0]] * 2


def test_the_difference_is_enlarged_by_a_power_of_two() -> None:
    """7 apart everywhere: 32 times is 224, 64 times would saturate; the sign does not matter."""
    low, high = np.full((1, 2, 2, 3), 100, np.uint8), np.full((1, 2, 2, 3), 107, np.uint8)
    apart, factor = difference(low, high)
    assert factor == 32
    assert (apart == 224).all()
    assert (difference(high, low)[0] == apart).all()
    assert difference(low, low)[1] == 1


def test_an_evaluator_nobody_here_wrote_appears(example: Any) -> None:
    """Its name, its curve of both models, its images and its metric are on the page, with no code for it."""
    found = page(example)
    labels = [fields.get("aria-label") for tag, fields in found.elements if tag == "svg"]
    images = [fields["alt"] for tag, fields in found.elements if tag == "img"]
    assert labels == ["SQNR per layer", "SQNR per timestep", "Edge energy"]
    assert [alt for alt in images if alt and alt.startswith("edges")] == [
        "edges, original",
        "edges, quantized",
        "edges, difference × 4",
    ]
    assert "edge_energy" in found.text
    assert found.text.count("sharpness") >= 2


def test_the_headline_says_how_the_model_computes(example: Any) -> None:
    """The words are plain, and the numbers those of the evaluators."""
    text = page(example).text
    assert "simulated: integer weights on disk, arithmetic in floating point" in text
    for number in ("21.85 dB", "33.19 dB", "6.942×", "143.1 MB → 20.61 MB"):
        assert number in text


def test_every_node_left_in_floating_point_is_listed_with_its_reason(example: Any) -> None:
    """Once, in a table of its own, with the pass that said so."""
    text = page(example).text
    for reason in example.report["records"][0]["notes"]["left_in_float"].values():
        assert text.count(reason) == 1


def test_what_a_pass_asks_to_have_drawn_is_drawn_and_not_listed() -> None:
    """A curve, a table of cells and bars, under their titles, in the section of the pass; other notes stay a list."""
    notes = {
        "drift": curves({"round 1": {981: 0.5, 1: 2.0}}, x="timestep", y="distance"),
        "verdict": cells({"attn": {981: -1.0, 1: math.nan}}, x="timestep", above="powers", below="even"),
        "harm": bars({"raised": {"conv_in": 0.5}, "left": {"conv_out": 0.1, "mid": 0.2}}),
        "layers": 3,
    }
    record = Record(index=1, name="par", options={}, changed=True, notes=notes)
    html = render(json.loads(to_json(empty(records=(record,)))), {}, {})
    assert html.count("<polyline") == 1
    assert html.count('<rect class="cell below"') == 1
    assert re.findall(r'<line class="stem (n\d)"', html) == ["n0", "n1", "n1"]
    assert re.findall(r'<text class="name"[^>]*>([^<]*)<', html)[:3] == ["conv_in", "mid", "conv_out"]
    for title in ("drift", "verdict", "harm"):
        assert html.count(f"<h3>{title}</h3>") == 1, title
    for text in (">round 1</span>", ">powers</span>", ">even</span>", ">raised</span>", ">left</span>"):
        assert html.count(text) == 1, text
    assert "<dt>layers</dt>" in html
    assert "<dt>drift</dt>" not in html
    assert html == render(empty(records=(record,)), {}, {})


def test_metrics_of_unlike_protocol_stay_in_rows_of_their_own() -> None:
    """An original measured on other images never stands beside the quantized model's value."""
    original = Metric(name="fid", value=3.0, subject="original", protocol={"images": 50000})
    quantized = Metric(name="fid", value=9.0, subject="quantized", protocol={"images": 32})
    html = render(empty(("f", original), ("f", quantized)), {}, {})
    assert html.count('<td class="mono">fid</td>') == 2


def test_a_run_with_nothing_to_show_has_a_page() -> None:
    """No pass, no evaluator, no timings."""
    text = Page(render(empty(), {}, {})).text
    assert "No pass ran." in text
    assert "No evaluator ran." in text
    assert "not stated" in text


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((1, 3, 4, 4), np.uint8)]
)
def test_images_of_another_kind_are_refused(images: np.ndarray[Any, Any]) -> None:
    """The error names the images and the rule."""
    with pytest.raises(EvaluationError, match=r"images 'odd' .* must be uint8 of N x H x W x 3"):
        render(empty(), {"x": {"quantized": Observation(images={"odd": images})}}, {})


def test_a_curve_of_unequal_lengths_is_refused() -> None:
    """The error names the evaluator and the series."""
    seen = Observation(series={"odd": Series(title="t", x=(1.0, 2.0), y=(1.0,))})
    with pytest.raises(EvaluationError, match="series 'odd' of evaluator 'x' has 2 x for 1 y"):
        render(empty(), {"x": {"quantized": seen}}, {})


def test_large_images_are_counted_where_they_are_left_out() -> None:
    """Five images of a megapixel: four fit, and the page says so."""
    seen = Observation(images={"big": np.zeros((5, 1024, 1024, 3), np.uint8)})
    assert "first 4 of 5 quantized" in render(empty(), {"x": {"quantized": seen}}, {})
