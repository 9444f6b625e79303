"""Which recipe runs on which model: every cell read and checked before anything is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import attrs

from qpass.errors import RecipeError
from qpass.plugins import Catalog
from qpass.recipe import Recipe, read

_OPTION = re.compile(r",(?=[A-Za-z_][\w.]*=)")  # a value may hold commas of its own


@attrs.frozen(kw_only=True)
class Choice:
    """A model as `--model` names it: the changes that put it into a recipe, and a short name for it."""

    name: str
    label: str
    overrides: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class Cell:
    """One recipe on one model, and the folder of its run. `source` and `overrides` make `recipe` once more.

    `seed` is set where it was asked for, and not the recipe's own.
    """

    source: str
    overrides: tuple[str, ...]
    recipe: Recipe
    model: str
    folder: Path
    seed: int | None = None

    @property
    def title(self) -> str:
        return f"{self.recipe.name} on {self.model}" + ("" if self.seed is None else f", seed {self.seed}")


def choice(text: str) -> Choice:
    """A model by name, or with options of its adapter.

    >>> choice("cifar10-dit")
    Choice(name='cifar10-dit', label='cifar10-dit', overrides=('model.use=cifar10-dit',))
    >>> choice("diffusers:path=zoo/tiny,dtype=bfloat16").label
    'diffusers-tiny-bfloat16'
    """
    name, _, rest = text.partition(":")
    options = _OPTION.split(rest) if rest else []
    if wrong := [option for option in options if not re.match(r"[A-Za-z_][\w.]*=", option)]:
        raise ValueError(
            f"--model {text}: {wrong[0]!r} is not KEY=VALUE; write for example diffusers:path=models/mine"
        )
    values = [Path(option.partition("=")[2].strip("'\"")).name for option in options]
    label = re.sub(r"[^\w.-]+", "_", "-".join([name, *values]))
    return Choice(
        name=name, label=label, overrides=(f"model.use={name}", *(f"model.{option}" for option in options))
    )


def plan(
    sources: Sequence[str],
    models: Sequence[str] = (),
    *,
    catalog: Catalog,
    out: Path,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> tuple[Cell, ...]:
    """The cells, those of one model together, in the order given; one `RecipeError` lists every mistake in them.

    Where there are `seeds`, each recipe has a cell for each of them; all recipes come with the first one first.
    """
    problems: list[str] = []
    if seeds and any(text.partition("=")[0].strip() == "seed" for text in overrides):
        problems.append("--set seed has no place beside --seed; leave one of them out")
    choices: list[Choice | None] = []
    for text in models:
        try:
            choices.append(choice(text))
        except ValueError as error:
            problems.append(str(error))
    cells: list[Cell] = []
    wrong: dict[str, list[str]] = {}  # a problem, and the recipes it was met in
    own_seeds: Sequence[int | None] = seeds or (None,)
    for chosen, seed, source in product(choices or [None], own_seeds, sources):
        own = () if seed is None else (f"seed={seed}",)
        changes = (*(chosen.overrides if chosen else ()), *overrides, *own)
        try:
            recipe = read(source, catalog=catalog, preset=preset, overrides=changes)
            if chosen and recipe.model.name != chosen.name:
                raise RecipeError("--set model.use has no place beside --model; leave one of them out")
        except RecipeError as error:
            for problem in error.problems:
                met = wrong.setdefault(problem, [])
                met += [] if source in met else [source]
            continue
        label = chosen.label if chosen else recipe.model.name
        folder = out / f"{recipe.name}-{label}{'' if seed is None else f'-seed{seed}'}"
        cells.append(Cell(source=source, overrides=changes, recipe=recipe, model=label, folder=folder, seed=seed))
    everywhere = len(set(sources)) if len(set(sources)) > 1 else None
    for problem, met in wrong.items():
        problems.append(problem if len(met) == everywhere else f"{', '.join(met)}: {problem}")
    for folder, count in Counter(cell.folder for cell in cells).items():
        if count > 1:
            problems.append(f"{count} cells would have the folder {folder.name!r}; {_way_out(cells, folder)}")
    if problems:
        raise RecipeError(problems, "compare")
    return _by_model(cells)


def _way_out(cells: Sequence[Cell], folder: Path) -> str:
    sources = {cell.source for cell in cells if cell.folder == folder}
    return (
        "name each recipe, model and seed once"
        if len(sources) == 1
        else "rename one of " + ", ".join(sorted(sources))
    )


def _by_model(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Cells of one model stand together, where recipes bring models of their own."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    return tuple(sorted(cells, key=lambda cell: models.index(cell.model)))
