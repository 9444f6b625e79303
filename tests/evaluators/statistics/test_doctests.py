"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["moments", "frechet", "kernel", "manifold", "score"])
def test_examples(name: str) -> None:
    """Each module has some, and all hold."""
    module = importlib.import_module(f"qpass_evaluators.statistics.{name}")
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
