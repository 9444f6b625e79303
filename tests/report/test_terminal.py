from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from qpass.evaluator import Metric
from qpass.report import report, table


def printed(report: Any, timings: Any = None) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(table(report, timings or {}))
    return out.getvalue()


def test_it_is_plain_text_where_there_is_no_terminal(example: Any) -> None:
    """No control codes, nothing cut off at 80 characters, one line per metric."""
    text = printed(example.report, example.timings)
    assert "\x1b" not in text
    assert "…" not in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["bops"] == ["bops", "6.207", "TBOPs", "241.9", "GBOPs", "lower"]
    assert lines["sqnr"] == ["sqnr", "21.85", "dB", "higher"]
    assert lines["kid"] == ["kid", "–", "lower"]
    assert lines["ms_per_step"] == ["ms_per_step", "412.9", "ms", "498.2", "ms", "lower"]
    assert "simulated: integer weights on disk, arithmetic in floating point" in text
    assert "took 35 min 54 s" in text


def test_a_name_is_never_read_as_markup() -> None:
    """Square brackets are rich's; a metric may have them all the same."""
    metrics = [("a", Metric(name="[red]x[/red]", value=1.0)), ("b", Metric(name="[red]x[/red]", value=2.0))]
    text = printed(report({}, 0, {}, "cpu", [], metrics))
    assert "[red]x[/red] (a)" in text
    assert "[red]x[/red] (b)" in text
