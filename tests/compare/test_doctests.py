"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from qpass.compare import cell, matrix, plan, show


@pytest.mark.parametrize("module", [cell, matrix, plan, show], ids=lambda module: module.__name__)
def test_doctests(module: ModuleType) -> None:
    """Every example gives what it says."""
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
