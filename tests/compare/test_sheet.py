"""Rows, columns and notes of a comparison; what was measured differently is said."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from qpass.compare.matrix import WAITING
from qpass.compare.sheet import Sheet, sheet
from qpass.compare.show import markdown, terminal


def metric(
    name: str, value: float | None, subject: str = "quantized", evaluator: str = "e", **protocol: Any
) -> Any:
    return {
        "evaluator": evaluator, "name": name, "value": value, "better": "lower", "unit": "", "subject": subject,
        "protocol": protocol,
    }  # fmt: skip


def cell(recipe: str, model: str, *metrics: Any, **rest: Any) -> dict[str, Any]:
    done = {"status": "done", "seconds": 2.0, "total_seconds": 9.0, "peak_memory_mb": 500.0, "resumed": False}
    return {
        **WAITING,
        "recipe": recipe,
        "model": model,
        "seed": 0,
        **done,
        "timed": [],
        "metrics": list(metrics),
        **rest,
    }


def texts(found: Sheet) -> list[list[str]]:
    return [found.texts(index) for index in range(len(found.rows))]


def test_rows_and_columns() -> None:
    """The original of each model first, then its cells in order; a metric of the original alone has no column."""
    found = sheet([
        cell("b", "m", metric("fid", 9.0, "original"), metric("fid", 9.5), metric("macs", 4.0, "original")),
        cell("a", "m", metric("fid", 9.0, "original"), metric("fid", 9.25), metric("psnr", 31.0, "pair")),
        cell("b", "n", metric("fid", 7.0, "original"), metric("fid", 7.5)),
    ])  # fmt: skip
    assert found.heads() == ["model", "recipe", "fid", "psnr", "passes", "process peak (MB)"]
    assert texts(found) == [
        ["m", "original", "9", "", "", ""],
        ["m", "b", "9.5", "", "2.0 s", "500"],
        ["m", "a", "9.25", "31", "2.0 s", "500"],
        ["n", "original", "7", "", "", ""],
        ["n", "b", "7.5", "", "2.0 s", "500"],
    ]
    assert found.marks == {}


def test_unlike_protocols_are_marked_and_named() -> None:
    """A figure measured unlike the first of its column points to a note that says how; figures alike share one."""
    found = sheet([
        cell("a", "m", metric("fid", 1.0, images=100, steps=20), metric("kid", 2.0, images=100, steps=20)),
        cell("b", "m", metric("fid", 3.0, images=100, steps=50), metric("kid", 4.0, images=100, steps=50)),
        cell("c", "m", metric("fid", 5.0, images=100, steps=20), metric("kid", 6.0, images=9, steps=20)),
    ])  # fmt: skip
    assert [row[2:4] for row in texts(found)] == [["1", "2"], ["3 [1]", "4 [1]"], ["5", "6 [2]"]]
    assert found.notes[:2] == (
        "[1] fid, kid of b on m: measured unlike a on m: steps 50 against 20",
        "[2] kid of c on m: measured unlike a on m: images 9 against 100",
    )


def test_a_note_names_a_model_once() -> None:
    """Where all of a model's figures are unlike the first, its rows are not named one by one; some of them are."""
    found = sheet([
        cell("a", "m", metric("fid", 1.0, steps=20)),
        cell("b", "m", metric("fid", 1.0, steps=50)),
        cell("a", "n", metric("fid", 2.0, steps=50), metric("kid", 1.0)),
        cell("b", "n", metric("fid", 3.0, steps=50)),
        cell("c", "n", metric("kid", 3.0)),
    ])  # fmt: skip
    assert found.notes[0] == "[1] fid of b on m, all on n: measured unlike a on m: steps 50 against 20"


def test_an_original_measured_twice_has_two_rows() -> None:
    """Where recipes sample differently, each figure of the original stands, the second with its note."""
    found = sheet([
        cell("a", "m", metric("fid", 1.0, "original", steps=20), metric("fid", 2.0, steps=20)),
        cell("b", "m", metric("fid", 3.0, "original", steps=50), metric("fid", 4.0, steps=50)),
    ])  # fmt: skip
    assert [row[1:3] for row in texts(found)] == [
        ["original", "1"],
        ["original", "3 [1]"],
        ["a", "2"],
        ["b", "4 [1]"],
    ]
    assert found.notes[0] == (
        "[1] fid of original on m, b on m: measured unlike original on m: steps 50 against 20"
    )


def test_one_name_of_two_evaluators() -> None:
    """Each has a column, which says whose it is."""
    found = sheet([
        cell("a", "m", metric("mb", 1.0, evaluator="x"), metric("mb", 2.0, evaluator="y"), metric("mb", 3.0, "pair"))
    ])  # fmt: skip
    assert found.heads()[2:5] == ["mb of quantized, x", "mb of quantized, y", "mb of pair, e"]
    assert texts(found)[0][2:5] == ["1", "2", "3"]


def test_times_are_figures_too() -> None:
    """What varies between equal runs has columns of its own, and what is not finite a dash."""
    timed = [metric("ms", 5.0, "original"), metric("ms", None)]
    found = sheet([cell("a", "m", metric("fid", 1.0), timed=timed)])
    assert found.heads()[2:4] == ["fid", "ms"]
    assert [row[2:4] for row in texts(found)] == [["", "5"], ["1", "–"]]


def test_cells_without_figures() -> None:
    """One that failed, one that waits and one that was interrupted are rows, and say so below."""
    found = sheet([
        cell("a", "m", status="failed", error="no | such layer", seconds=None, peak_memory_mb=None),
        cell("b", "m", metric("fid", 1.0), resumed=True, resumed_passes=["brecq", "learn-steps"]),
        {**WAITING, "recipe": "c", "model": "m", "seed": 0},
    ])  # fmt: skip
    assert [row[1:] for row in texts(found)] == [["a", "", "", ""], ["b", "1", "2.0 s", "500"], ["c", "", "", ""]]
    lines = markdown(found).splitlines()
    assert lines[1] == "|---|---|---:|---:|---:|"
    assert lines[6:10] == [
        "- a on m failed: no \\| such layer",
        "- b on m was interrupted: its process peak is without what was being done then",
        "- b on m: passes is without the time of what had been done of brecq, learn-steps before",
        "- c on m has not been carried out yet",
    ]


def test_seeds_that_are_not_finished_are_in_no_mean() -> None:
    """Of three, two make a mean; of two, one alone makes none."""
    rows = [cell("r", "m", metric("fid", 9.0 + s, "pair"), seed=s) for s in (0, 1)]
    waiting = {**rows[0], **WAITING, "seed": 2}
    assert "means over the seeds 0, 1 ±" in " ".join(sheet([*rows, waiting]).notes)
    assert "means" not in " ".join(sheet([rows[0], {**waiting, "seed": 1}]).notes)


def test_seeds_share_a_row() -> None:
    """Of 1, 2 and 6 the mean is 3 and the deviation the root of (4 + 1 + 9) / 2; what is equal has none."""

    def run(seed: int, recipe: str, fid: float | None, **rest: Any) -> dict[str, Any]:
        metrics = [
            metric("fid", 9.0 + seed, "original", seed=seed),
            metric("fid", fid, seed=seed),
            metric("mb", 0.5),
        ]
        return cell(recipe, "m", *metrics, seed=seed, **rest)

    found = sheet([
        run(0, "a", 1.0), run(0, "b", 4.0), run(1, "a", 2.0, seconds=5.0, peak_memory_mb=700.0), run(1, "b", None),
        run(2, "a", 6.0), {**WAITING, "recipe": "b", "model": "m", "seed": 2},
    ])  # fmt: skip
    assert texts(found) == [
        ["m", "original", "10 ± 1", "", "", ""],
        ["m", "a", "3 ± 2.646", "0.5", "3.0 s", "700"],
        ["m", "b", "–", "0.5", "2.0 s", "500"],
    ]
    assert found.marks == {}
    assert found.notes[:2] == (
        "figures are means over the seeds 0, 1, 2 ± their standard deviation, where they are not all equal",
        "b on m, seed 2 has not been carried out yet",
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_is_cut_off(width: int) -> None:
    """However narrow the terminal, every head and figure is there whole, with the rows' names beside it."""
    many = [metric(f"a_rather_long_name_{n}", 1000.0 + n) for n in range(12)]
    found = sheet([cell("a", "m", *many)])
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(found, width))
    shown = console.export_text()
    for n in range(12):
        assert f"a_rather_long_name_{n}" in shown
        assert f"1,0{n:02d}" in shown
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    assert shown.count("recipe") > 1  # so many columns fit into none of the widths
