"""Text for a reader: wrapped to a terminal, left on one line for grep."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable

import click

from qpass.plugins import Broken


def formatter() -> click.HelpFormatter:
    """The layout of our help pages, as wide as the terminal; lines are not broken where no one watches."""
    width = min(shutil.get_terminal_size().columns, 115) if sys.stdout.isatty() else 1 << 16
    return click.HelpFormatter(width=width)


def broken(plugins: Iterable[Broken]) -> str:
    """Plugins that failed, with their reasons; empty where there are none."""
    rows = [(b.plugin, b.reason) for b in plugins]
    if not rows:
        return ""
    page = formatter()
    with page.section("Broken plugins"):
        page.write_dl(rows)
    return page.getvalue()
