"""Recipes composed in Python: held to what a file is held to, before anything is loaded."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.simulate import Simulate

import qpass
from qpass.errors import RecipeError
from qpass.plugins import Catalog
from qpass.recipe import Recipe, read
from qpass.recipe.composed import composed


@attrs.frozen(kw_only=True)
class Scale(qpass.Pass):
    """Takes what it is given."""

    name: ClassVar[str] = "scale"
    by: Any = 1.0

    def run(self, graph: Any, ctx: Any) -> qpass.PassResult:
        """Changes nothing."""
        return qpass.PassResult(graph=graph, changed=False)


def changed(known: Catalog, **changes: Any) -> Recipe:
    """The shipped w8a8 with parts replaced, as a script would write it."""
    return attrs.evolve(read("w8a8", catalog=known), **changes)


def test_numbers_of_numpy_are_numbers(known: Catalog) -> None:
    """Options and a seed that came out of an array give the data that plain ones give."""
    steps = tuple(Scale(by=by) for by in (np.float32(0.5), np.int64(3), np.bool_(True), (np.float64(2.5),)))
    recipe = composed(changed(known, passes=steps, seed=np.int64(7)), known)
    plain = composed(changed(known, passes=tuple(Scale(by=by) for by in (0.5, 3, True, (2.5,))), seed=7), known)
    assert recipe.toml() == plain.toml()
    assert type(recipe.seed) is int


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (
            math.sqrt,
            "passes[2].by: <built-in function sqrt> has no place in an artifact; an option is text, a finite",
        ),
        (torch.ones(2), "passes[2].by: tensor([1., 1.]) has no place in an artifact"),
        (math.nan, "passes[2].by: nan has no place in an artifact"),
        ([1.0, {"a": -math.inf}], "passes[2].by[2].a: -inf has no place in an artifact"),
        ([None], "passes[2].by[1]: None has no place in an artifact"),
    ],
    ids=str,
)
def test_what_no_artifact_can_hold(known: Catalog, by: Any, said: str) -> None:
    """One sentence with the option's place and its value."""
    with pytest.raises(RecipeError) as caught:
        composed(changed(known, passes=(Scale(), Scale(by=by))), known)
    (problem,) = caught.value.problems
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1.5}, "seed must be a whole number from 0 to 2**63 - 1, not 1.5"),
        ({"seed": True}, "seed must be a whole number from 0 to 2**63 - 1, not True"),
        ({"memory_budget": "four"}, "memory_budget: 'four' is not a size; write it like"),
        (
            {"passes": (Simulate(), Assign())},
            "passes[1] simulate: needs 'specs', which no pass before it provides",
        ),
        ({"passes": (Scale,)}, "passes[1]: must be a qpass.Pass, not <class"),
        ({"calibration": 5}, "calibration: must be a qpass Analysis, not 5"),
        ({"evaluators": (Scale(),)}, "evaluators: must be a qpass Evaluator, not Scale(by=1.0)"),
    ],
    ids=str,
)
def test_what_is_wrong(known: Catalog, changes: dict[str, Any], said: str) -> None:
    """A `Recipe` made by hand is checked like one that was read."""
    with pytest.raises(RecipeError) as caught:
        composed(changed(known, **changes), known)
    assert caught.value.problems[0].startswith(said)


def test_simulate_is_appended(known: Catalog) -> None:
    """Also to a `Recipe` made by hand that ends in `assign`."""
    recipe = composed(changed(known, passes=(Assign(),)), known)
    assert [step.name for step in recipe.passes] == ["assign", "simulate"]
