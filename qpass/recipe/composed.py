"""A recipe composed in Python, held to all that a recipe in a file is held to, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from qpass.analysis import Analysis
from qpass.errors import RecipeError
from qpass.evaluator import Evaluator
from qpass.model import ModelAdapter
from qpass.plugins import Catalog
from qpass.recipe import Recipe, bytes_of, check_passes, realised, seed_problem
from qpass.recipe.structure import shown, to_data
from qpass.sampling import Sampling


def composed(recipe: Recipe, catalog: Catalog) -> Recipe:
    """The recipe, its numbers Python's own, and realised; one `RecipeError` that lists what is wrong with it."""
    problems: list[str] = []
    for kind, part in (
        (ModelAdapter, "model"), (Sampling, "sampling"), (Analysis, "calibration"), (Evaluator, "evaluators"),
    ):  # fmt: skip
        found = getattr(recipe, part)
        for one in found if kind is Evaluator else (found,):
            if not isinstance(one, kind):
                problems.append(f"{part}: must be a qpass {kind.__name__}, not {shown(one)}")
    try:
        check_passes(recipe.passes, catalog)
    except RecipeError as error:
        problems += error.problems
    recipe = attrs.evolve(recipe, seed=to_data(recipe.seed))
    problems += seed_problem(recipe.seed)
    try:
        bytes_of(recipe.memory_budget)
    except ValueError as error:
        problems.append(f"memory_budget: {error}")
    if problems := problems or _homeless(recipe.data(), ""):
        raise RecipeError(problems, f"recipe {recipe.name!r}")
    return realised(recipe, catalog)


def _homeless(data: Any, place: str) -> list[str]:
    """Options that neither a recipe file nor an artifact can hold, such as functions, tensors and NaN."""
    if isinstance(data, Mapping):
        return [line for key, value in data.items() for line in _homeless(value, f"{place}.{key}".lstrip("."))]
    if isinstance(data, list):
        return [line for n, value in enumerate(data, 1) for line in _homeless(value, f"{place}[{n}]")]
    if isinstance(data, bool | int | str) or (isinstance(data, float) and math.isfinite(data)):
        return []
    return [
        f"{place}: {shown(data)} has no place in an artifact; an option is text, a finite number, true or false, "
        "or a list or table of such"
    ]
