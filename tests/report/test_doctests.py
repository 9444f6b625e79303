from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["data", "human", "pictures", "svg", "terminal"])
def test_examples_in_docstrings_hold(name: str) -> None:
    """Each prints what its docstring says."""
    results = doctest.testmod(importlib.import_module(f"qpass.report.{name}"))
    assert results.attempted
    assert not results.failed
