"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["qpass.einsum", "qpass_evaluators.similarity", "qpass_evaluators.noise"])
def test_examples(name: str) -> None:
    """Each module has some, and all hold."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
