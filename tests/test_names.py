"""`import qpass` offers every public name and imports none until it is used."""

from __future__ import annotations

import ast
import importlib.util
from importlib.metadata import version
from pathlib import Path

import pytest

import qpass

HOMES = qpass._HOMES
WRITTEN = sorted(name for name, home in HOMES.items() if importlib.util.find_spec(home) is not None)


@pytest.mark.parametrize("name", WRITTEN)
def test_each_name_is_that_of_its_module(name: str) -> None:
    """`qpass.X` is the very object its module defines."""
    assert getattr(qpass, name) is getattr(importlib.import_module(HOMES[name]), name)


def test_type_checkers_see_the_same_names() -> None:
    """What is imported under TYPE_CHECKING, and from where, is what is imported lazily."""
    tree = ast.parse(Path(qpass.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == HOMES


def test_dir_is_what_is_public() -> None:
    """`dir(qpass)` is the public names, which is also what `import *` takes."""
    assert dir(qpass) == sorted(qpass.__all__) == sorted({"__version__", *HOMES})


def test_unknown_names() -> None:
    """A name that is none is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'qpass' has no attribute 'quantise'"):
        qpass.quantise  # noqa: B018


def test_version() -> None:
    """The version is that of the installed distribution."""
    assert qpass.__version__ == version("qpass")
