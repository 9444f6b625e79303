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
from qpass.recipe.override import leaves
from qpass.recipe.structure import to_data

OF_SAMPLING = "sampling."
_OPTION = re.compile(r",(?=[A-Za-z_][\w.]*=)")  # a value may hold commas of its own


@attrs.frozen(kw_only=True)
class Choice:
    """A model as `--model` names it: the changes that put it into a recipe, and a short name for it."""

    name: str
    label: str
    overrides: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class Cell:
    """One recipe on one model, and the folder of its run. `source` is what the recipe was asked for by.

    `seed` is set where it was asked for, and not the recipe's own.
    """

    source: str
    recipe: Recipe
    model: str
    folder: Path
    seed: int | None = None

    @property
    def title(self) -> str:
        return f"{self.recipe.name} on {self.model}" + ("" if self.seed is None else f", seed {self.seed}")


def choice(text: str) -> Choice:
    """A model by name, or with options of its adapter, and of `sampling` where they are for this model alone.

    >>> choice("cifar10-dit")
    Choice(name='cifar10-dit', label='cifar10-dit', overrides=('model.use=cifar10-dit',))
    >>> choice("diffusers:path=zoo/tiny,dtype=bfloat16").label
    'diffusers-tiny-bfloat16'
    >>> choice("cifar10-dit:sampling.guidance=1.5").overrides
    ('model.use=cifar10-dit', 'sampling.guidance=1.5')
    """
    name, _, rest = text.partition(":")
    options = _OPTION.split(rest) if rest else []
    if wrong := [option for option in options if not re.match(r"[A-Za-z_][\w.]*=", option)]:
        raise ValueError(
            f"--model {text}: {wrong[0]!r} is not KEY=VALUE; write for example diffusers:path=models/mine"
        )
    full = (option if option.startswith(OF_SAMPLING) else f"model.{option}" for option in options)
    overrides = (f"model.use={name}", *full)
    return Choice(name=name, label=_label(overrides), overrides=overrides)


def _label(overrides: Sequence[str], depth: int = 1) -> str:
    """The values, of paths the last parts."""
    paths = [Path(change.partition("=")[2].strip("'\"")) for change in overrides]
    return re.sub(
        r"[^\w.-]+", "_", "-".join(str(Path(*path.parts[-depth:])) if path.parts else "" for path in paths)
    )


def told_apart(choices: Sequence[Choice]) -> list[Choice]:
    """The choices; where two that differ have one label, as much more of their paths as tells them apart.

    >>> [c.label for c in told_apart([choice("x:path=a/unet"), choice("x:path=b/unet"), choice("x:path=b/dit")])]
    ['x-a_unet', 'x-b_unet', 'x-dit']
    """
    found = list(choices)
    deepest = max((change.count("/") for one in found for change in one.overrides), default=0) + 1
    for depth in range(2, deepest + 2):  # one more for the root
        meant = {one.label: {other.overrides for other in found if other.label == one.label} for one in found}
        found = [
            attrs.evolve(one, label=_label(one.overrides, depth)) if len(meant[one.label]) > 1 else one
            for one in found
        ]
    return found


def own_labels(recipes: Sequence[Recipe]) -> list[str]:
    """A short name for each recipe's own model: its adapter's, with the options in which those of one name differ."""
    tables = [dict(leaves(to_data(recipe.model))) for recipe in recipes]
    choices = []
    for recipe, table in zip(recipes, tables, strict=True):
        name = recipe.model.name
        alike = [other for one, other in zip(recipes, tables, strict=True) if one.model.name == name]
        unlike = [path for path in table if any(other.get(path) != table[path] for other in alike)]
        changes = (f"use={name}", *(f"{'.'.join(path)}={table[path]}" for path in unlike))
        choices.append(Choice(name=name, label=_label(changes), overrides=changes))
    return [one.label for one in told_apart(choices)]


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
    choices: list[Choice] = []
    for text in models:
        try:
            choices.append(choice(text))
        except ValueError as error:
            problems.append(str(error))
    cells: list[Cell] = []
    checked: list[tuple[str, Recipe, str, int | None]] = []  # with the model's label, where it was chosen
    wrong: dict[str, list[str]] = {}  # a problem, and the recipes it was met in
    own_seeds: Sequence[int | None] = seeds or (None,)
    chosen_models: Sequence[Choice | None] = told_apart(choices) or (None,)
    for chosen, seed, source in product(chosen_models, own_seeds, sources):
        own = () if seed is None else (f"seed={seed}",)
        of_model = chosen.overrides if chosen else ()
        # what is said of one model goes before what --set says of all, which may not change the model itself
        special = [change for change in of_model if change.startswith(OF_SAMPLING)]
        changes = (*of_model, *overrides, *special, *own)
        try:
            recipe = read(source, catalog=catalog, preset=preset, overrides=changes)
            if chosen and recipe.model.name != chosen.name:
                raise RecipeError("--set model.use has no place beside --model; leave one of them out")
        except RecipeError as error:
            for problem in error.problems:
                met = wrong.setdefault(problem, [])
                met += [] if source in met else [source]
            continue
        checked.append((source, recipe, chosen.label if chosen else "", seed))
    labels = own_labels([recipe for _, recipe, _, _ in checked])
    for (source, recipe, given, seed), own_label in zip(checked, labels, strict=True):
        label = given or own_label
        folder = out / f"{recipe.name}-{label}{'' if seed is None else f'-seed{seed}'}"
        cells.append(Cell(source=source, recipe=recipe, model=label, folder=folder, seed=seed))
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
