"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["qpass.images.contract", "qpass.images.drawn", "qpass.images.folder", "qpass.protocol"]
)
def test_examples(name: str) -> None:
    """Each module has some, and all hold."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
