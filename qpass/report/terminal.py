"""The end of a run, on the terminal: every metric in one table, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from qpass.report.facts import execution
from qpass.report.human import duration, quantity
from qpass.report.rows import Row, rows


def table(report: Mapping[str, Any], timings: Mapping[str, Any]) -> Table:
    """Metric, original, quantized or pair, and which way is better. Plain text where there is no terminal."""
    how = execution(report)
    caption = Text(f"{how.mode}: {how.sentence}")
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", caption_style="")
    found.min_width = min(len(caption), 78)
    found.add_column("metric", overflow="fold")
    found.add_column("original", justify="right", no_wrap=True)
    found.add_column("quantized / pair", justify="right", no_wrap=True)
    found.add_column("better", style="dim", no_wrap=True)
    measured = [*rows(report["metrics"]), *rows(timings.get("metrics", ()))]
    names = [row.name for row in measured]
    for row in measured:
        label = Text(row.name)
        if names.count(row.name) > 1:
            label.append(f" ({row.evaluator})", style="dim")
        found.add_row(label, Text(_original(row)), Text(_rest(row), style="bold"), Text(row.better))
    if (total := timings.get("total_seconds")) is not None:
        caption.append(f"\ntook {duration(total)}")
    found.caption = caption
    return found


def where(folder: Path) -> str:
    """One line on where the files are.

    >>> where(Path("runs/tcaq-w4a4-cifar10-unet"))
    'report: runs/tcaq-w4a4-cifar10-unet/report.html   model: runs/tcaq-w4a4-cifar10-unet/artifact'
    """
    return f"report: {folder / 'report.html'}   model: {folder / 'artifact'}"


def _original(row: Row) -> str:
    return quantity(row.values["original"], row.unit) if "original" in row.values else ""


def _rest(row: Row) -> str:
    return " / ".join(quantity(row.values[s], row.unit) for s in ("quantized", "pair") if s in row.values)
