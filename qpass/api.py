"""The same in Python: quantize a model, a pipeline, or whatever a recipe names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from qpass.analysis import Analysis
from qpass.artifact import LoadedModel, load
from qpass.errors import ModelError, RecipeError
from qpass.evaluator import Evaluator
from qpass.manager import Pass
from qpass.model import ModelAdapter
from qpass.plugins import Catalog, catalog
from qpass.progress import Progress
from qpass.recipe import Recipe, read
from qpass.recipe.composed import composed
from qpass.recipe.structure import Structure, shown
from qpass.run import run
from qpass.sampling import Sampling


@attrs.frozen(kw_only=True, eq=False)
class Quantized:
    """What `quantize` gives: the model, called like the original class, and the report."""

    model: LoadedModel
    report: dict[str, Any]
    folder: Path | None


def quantize(
    model: object,
    recipe: str | Path | Recipe | Sequence[Pass] = "w8a8",
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    sampling: Sampling | None = None,
    calibration: Analysis[Any] | None = None,
    evaluators: Sequence[Evaluator] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    plugins: Catalog | None = None,
) -> Quantized:
    """Quantize a model with a recipe.

    `model` is a diffusers module or pipeline, the name of a zoo model, a `ModelAdapter`, or None to take the
    recipe's own. `recipe` is the name of a shipped recipe, a file, a `Recipe`, or a list of passes; what is given
    beside it takes the place of the recipe's. With `out` the run's folder is kept there, and resumed. The
    original is never changed.

        quantized = qpass.quantize(pipe, "w8a8")
        pipe.unet = quantized.model
    """
    known = plugins or catalog()
    own = None if model is None else adapter(model, known)
    chosen = _recipe(recipe, known, preset, overrides, own)
    given: dict[str, Any] = {
        "model": own,
        "sampling": sampling,
        "calibration": calibration,
        "evaluators": None if evaluators is None else tuple(evaluators),
        "seed": seed,
    }
    chosen = attrs.evolve(chosen, **{key: value for key, value in given.items() if value is not None})
    chosen = composed(chosen, known)
    with tempfile.TemporaryDirectory(prefix="qpass-") as scratch:
        folder = Path(out) if out is not None else Path(scratch) / "run"
        result = run(chosen, catalog=known, out=folder, device=str(device), progress=progress)
        loaded = load(folder, device, known)
    return Quantized(model=loaded, report=dict(result.report), folder=folder if out is not None else None)


def adapter(model: object, known: Catalog) -> ModelAdapter:
    """The adapter of a model given as an object or by name."""
    if isinstance(model, ModelAdapter):
        return model
    if isinstance(model, str):
        structure = Structure(known)
        named: ModelAdapter | None = structure.build(known.find("models", model), {}, f"model {model}")
        if named is None:
            raise RecipeError([f"{problem}; in Python, give the adapter itself" for problem in structure.problems])
        return named
    for cls in known.classes["models"].values():
        adopted = cls.adopt(model) if issubclass(cls, ModelAdapter) else None
        if adopted is not None:
            return adopted
    raise ModelError(
        f"no model adapter knows what to do with a {type(model).__name__}; give a diffusers module or pipeline, "
        "the name of a zoo model, or your own ModelAdapter"
    )


def _recipe(
    recipe: str | Path | Recipe | Sequence[Pass],
    known: Catalog,
    preset: str | None,
    overrides: Sequence[str],
    model: ModelAdapter | None,
) -> Recipe:
    if isinstance(recipe, str | Path):
        changes = (overrides,) if isinstance(overrides, str) else overrides  # a text is a sequence of texts too
        return read(recipe, catalog=known, preset=preset, overrides=changes, model=model)
    if preset is not None or overrides:
        raise RecipeError(
            "preset and overrides change a recipe by name or file; change this one's passes themselves"
        )
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, Iterable):
        raise RecipeError(f"must be a name, a file, a Recipe or a list of passes, not {shown(recipe)}")
    standard = read("w8a8", catalog=known)
    return attrs.evolve(standard, passes=tuple(recipe), evaluators=(), name="python")
