"""What a test of recipes does: change some fields, and see what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qpass.errors import RecipeError
from qpass.plugins import Catalog
from qpass.recipe import from_data

Data = dict[str, Any]
Change = Callable[[Data], Any]


def mistakes(data: Data, known: Catalog, **rest: Any) -> tuple[str, ...]:
    """What is wrong with a recipe."""
    with pytest.raises(RecipeError) as caught:
        from_data(data, catalog=known, **rest)
    return caught.value.problems


def change(data: Data, *path: str | int, **fields: Any) -> None:
    """Set fields of a table somewhere in a recipe."""
    for key in path:
        data = data[key]
    data.update(fields)


ASSIGN, SIMULATE = ("passes", 0), ("passes", 1)
