"""What a run did and how much quality it kept: as data, as one page of HTML, and as a table on the terminal."""

from __future__ import annotations

from qpass.report.data import SCHEMA, report, to_json
from qpass.report.html import render
from qpass.report.terminal import table, where

__all__ = ["SCHEMA", "render", "report", "table", "to_json", "where"]
