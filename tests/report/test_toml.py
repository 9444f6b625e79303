from __future__ import annotations

import tomllib
from typing import Any

import pytest

from qpass.report.toml import to_toml

HARD = {
    "text": 'quote " backslash \\ newline \n tab \t bell \x07 del \x7f é',
    "a key with spaces": 1,
    "numbers": [1, 2.5, 1e-05, float("inf"), -3],
    "flags": {"yes": True, "no": False},
    "empty": {"table": {}, "list": []},
    "mixed": [1, {"a": [{"b": "c"}]}],
}


@pytest.mark.parametrize("which", ["hard", "recipe"])
def test_what_is_written_reads_back_equal(which: str, example: Any) -> None:
    """Python's own TOML reader gives the recipe again: odd keys, escapes, nested tables, lists of tables."""
    recipe = HARD if which == "hard" else example.report["recipe"]
    assert tomllib.loads(to_toml(recipe)) == recipe


def test_what_is_none_is_left_out() -> None:
    """TOML has no null, and a missing key means the default."""
    assert tomllib.loads(to_toml({"a": None, "b": {"c": None, "d": [1, None]}})) == {"b": {"d": [1]}}
