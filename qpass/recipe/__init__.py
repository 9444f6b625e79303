"""A recipe: which model, how it is sampled and calibrated, which passes, which evaluators."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from qpass.analysis import Analysis
from qpass.errors import RecipeError, did_you_mean
from qpass.evaluator import Evaluator
from qpass.manager import Pass
from qpass.model import ModelAdapter
from qpass.plugins import Catalog
from qpass.recipe.override import LISTS, everywhere, leaves, override, parse_assignment
from qpass.recipe.structure import Structure, shown, to_data
from qpass.recipes import bits, shipped, sibling
from qpass.sampling import Sampling

SECTIONS = ("seed", "memory_budget", "model", "sampling", "calibration", "passes", "evaluators", "presets")
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*(KB|MB|GB|TB)")


@attrs.frozen(kw_only=True, eq=False)
class Recipe:
    """Everything a run depends on. `name` only names the run's folder; `notes` are said in the report."""

    model: ModelAdapter
    passes: tuple[Pass, ...]
    evaluators: tuple[Evaluator, ...] = ()
    sampling: Sampling = attrs.field(factory=Sampling)
    calibration: Analysis[Any]
    seed: int = 0
    memory_budget: str = "4GB"
    name: str = "recipe"
    notes: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """The recipe as plain data, every option spelt out: equal recipes give equal data."""
        return {
            "seed": self.seed,
            "memory_budget": self.memory_budget,
            "model": to_data(self.model),
            "sampling": to_data(self.sampling),
            "calibration": to_data(self.calibration),
            "passes": [to_data(step) for step in self.passes],
            "evaluators": [to_data(evaluator) for evaluator in self.evaluators],
        }

    def toml(self) -> str:
        """The recipe as a file that reads back to the same."""
        return tomli_w.dumps(self.data())


def bytes_of(size: str) -> int:
    """A size such as "4GB" in bytes.

    >>> bytes_of("1.5MB")
    1572864
    """
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None:
        raise ValueError(f'{shown(size)} is not a size; write it like "500MB" or "4GB"')
    return int(float(match[1]) * 1024 ** (("KB", "MB", "GB", "TB").index(match[2]) + 1))


def read(
    source: str | Path,
    *,
    catalog: Catalog,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    model: ModelAdapter | None = None,
) -> Recipe:
    """The recipe of that name or file, with a preset and `KEY=VALUE` overrides applied, and checked.

    Where none is called METHOD-wXaY, it is the method's recipe of the nearest bits, with X and Y in `assign`. A
    `model` takes the place of the recipe's own, which may then be missing.
    """
    known, name = shipped(), str(source)
    other = None if name in known else sibling(name)
    path = other or known.get(name) or Path(source)
    try:
        found = path.is_file()
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", str(path)) from error
    if not found:
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise RecipeError(
                f"no such file; name a shipped recipe ({', '.join(known)}) or an existing file", str(path)
            )
        raise RecipeError(f"unknown recipe {str(source)!r}, {did_you_mean(str(source), known)}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # tomllib's own errors, no UTF-8, too many digits
        raise RecipeError(f"not valid TOML: {error}", str(path)) from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", str(path)) from error
    if other is None or (wanted := bits(name)) is None:
        return from_data(data, catalog=catalog, name=path.stem, preset=preset, overrides=overrides, model=model)
    data = at_bits(data, *wanted)
    recipe = from_data(data, catalog=catalog, name=name, preset=preset, overrides=overrides, model=model)
    note = f"{other.stem} with weights of {wanted[0]} and inputs of {wanted[1]} bits"
    return attrs.evolve(recipe, notes=(note, *recipe.notes))


def at_bits(data: Mapping[str, Any], weight: int, given: int) -> dict[str, Any]:
    """A copy in which `assign` rounds weights and inputs to integers of these bits, all else as it was.

    Inputs that have a word of their own, such as those of linear layers, go along if they had as many bits as the rest.
    """
    tables = spelt_out(data)
    for entry in tables["passes"]:
        if entry.get("use") != "assign":
            continue
        before = re.match(r"int[2-8]\b", str(entry.get("input")))
        of_inputs = before.group() if before else "int[2-8]"
        for key in ("weight", "input", "linear_input", "attention"):
            width = weight if key == "weight" else given
            old = "int[2-8]" if key in ("weight", "input") else of_inputs
            if isinstance(text := entry.get(key), str):
                entry[key] = re.sub(rf"^{old}\b", f"int{width}", text)
    return tables


def from_data(
    data: Mapping[str, Any],
    *,
    catalog: Catalog,
    name: str = "recipe",
    preset: str | None = None,
    overrides: Sequence[str] = (),
    model: ModelAdapter | None = None,
) -> Recipe:
    """A recipe from plain data; raises one `RecipeError` that lists every mistake. A `model` is taken as it is."""
    try:
        return _from_tables(spelt_out(data), catalog, name, preset, overrides, model)
    except RecursionError as error:
        raise RecipeError("its tables are nested too deeply", f"recipe {name!r}") from error


def spelt_out(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which whatever is named by text alone, as in `passes = ["assign"]`, is a table with `use`."""
    tables = copy.deepcopy(dict(data))
    for key in ("model", "calibration"):
        if isinstance(name := tables.get(key), str):
            tables[key] = {"use": name}
    for key in LISTS:
        if isinstance(entries := tables.get(key), list):
            tables[key] = [{"use": entry} if isinstance(entry, str) else entry for entry in entries]
    return tables


def _from_tables(
    data: dict[str, Any],
    catalog: Catalog,
    name: str,
    preset: str | None,
    overrides: Sequence[str],
    given: ModelAdapter | None,
) -> Recipe:
    problems: list[str] = []
    known = catalog.classes["evaluators"]
    presets = data.pop("presets", {})
    if not isinstance(presets, Mapping):
        problems.append(f"presets must be tables, [presets.NAME], not {shown(presets)}")
        presets = {}
    if preset is not None:
        if isinstance(chosen := presets.get(preset), Mapping):
            problems += override(data, list(leaves(chosen)), f"preset {preset}:", known)
        else:
            problems.append(f"unknown preset {preset!r}, {did_you_mean(preset, presets)}")
    changes = []
    for text in overrides:
        try:
            changes.append(parse_assignment(text))
        except ValueError as error:
            problems.append(str(error))
    changes, unknown = everywhere(data, changes, catalog.classes["passes"])
    problems += unknown + override(data, changes, "--set", known)
    data = spelt_out(data)  # a change may have said it by text alone
    problems += [f"unknown section {key!r}, {did_you_mean(key, SECTIONS)}" for key in data if key not in SECTIONS]
    structure = Structure(catalog)
    if given is not None and any(path[0] == "model" for path, _ in changes):
        problems.append("--set model.* has no place beside a model that is given; change that one itself")
    model = given or structure.choose("models", data.get("model", {}), "model")
    sampling = _section(structure, data, "sampling")
    calibration = structure.choose("analyses", data.get("calibration", {"use": "uniform-steps"}), "calibration")
    passes = _entries(structure, data, "passes")
    evaluators = _entries(structure, data, "evaluators")
    seed, budget = data.get("seed", 0), data.get("memory_budget", "4GB")
    structure.problems += seed_problem(seed)
    try:
        bytes_of(budget)
    except ValueError as error:
        structure.problems.append(f"memory_budget: {error}")
    problems += structure.problems + check_order(data.get("passes"), catalog) + _repeated(data.get("evaluators"))
    if problems:
        raise RecipeError(problems, f"recipe {name!r}")
    recipe = Recipe(
        model=model, passes=tuple(passes), evaluators=tuple(evaluators), sampling=sampling,
        calibration=calibration, seed=seed, memory_budget=budget, name=name,
    )  # fmt: skip
    try:
        json.dumps(recipe.data(), allow_nan=False)  # so that an artifact can hold it
    except (ValueError, TypeError) as error:
        raise RecipeError(f"a value has no place in an artifact: {error}", f"recipe {name!r}") from error
    return realised(recipe, catalog)


def seed_problem(seed: Any) -> list[str]:
    """What is wrong with a seed, if anything."""
    if type(seed) is int and 0 <= seed < 2**63:
        return []
    return [f"seed must be a whole number from 0 to 2**63 - 1, not {shown(seed)}"]


def realised(recipe: Recipe, catalog: Catalog) -> Recipe:
    """The recipe itself, or with `simulate` appended where nothing in it carries the quantization out."""
    facts = frozenset().union(*(step.provides for step in recipe.passes)) if recipe.passes else frozenset()
    if "specs" not in facts or "realised" in facts:
        return recipe
    step = catalog.find("passes", "simulate")()
    note = "the recipe ended without `simulate` or `deploy`, so `simulate` was appended"
    return attrs.evolve(recipe, passes=(*recipe.passes, step), notes=(*recipe.notes, note))


def check_passes(passes: Sequence[Pass], catalog: Catalog) -> None:
    """Raise a `RecipeError` where passes composed in Python are no passes, or out of order."""
    problems = [
        f"passes[{n}]: must be a qpass.Pass, not {step!r}"
        for n, step in enumerate(passes, 1)
        if not isinstance(step, Pass)
    ]
    if problems := problems or order_problems([type(step) for step in passes], catalog):
        raise RecipeError(problems)


def check_order(entries: Any, catalog: Catalog) -> list[str]:
    """Mistakes in the order of passes: something needed that nothing before provides, or a conflict."""
    if not isinstance(entries, list):
        return []
    known = catalog.classes["passes"]
    classes = [known.get(str(entry.get("use"))) if isinstance(entry, Mapping) else None for entry in entries]
    return order_problems(classes, catalog)


def order_problems(classes: Sequence[type | None], catalog: Catalog) -> list[str]:
    """The same for pass classes; None stands for one that is not known."""
    problems: list[str] = []
    facts: dict[str, str] = {}
    unknown = False
    for place, cls in enumerate(classes, 1):
        if cls is None or not issubclass(cls, Pass):
            unknown = True  # it may have provided anything
            continue
        for fact in () if unknown else sorted(cls.needs - facts.keys()):
            givers = [n for n, c in catalog.classes["passes"].items() if fact in getattr(c, "provides", ())]
            problems.append(
                f"passes[{place}] {cls.name}: needs {fact!r}, which no pass before it provides; "
                f"put {' or '.join(map(repr, givers)) or 'a pass that provides it'} before it"
            )
        for fact in sorted(cls.conflicts & facts.keys()):
            problems.append(
                f"passes[{place}] {cls.name}: cannot come after {facts[fact]!r}, which provides {fact!r}; "
                "move it before that pass, or remove one of them"
            )
        facts |= dict.fromkeys(cls.provides, cls.name)
    return problems


def _section(structure: Structure, data: Mapping[str, Any], name: str) -> Any:
    table = data.get(name, {})
    if not isinstance(table, Mapping):
        structure.problems.append(f"{name} must be a table, [{name}], not {shown(table)}")
        return None
    return structure.build(Sampling, table, name)


def _entries(structure: Structure, data: Mapping[str, Any], kind: str) -> list[Any]:
    entries = data.get(kind, [])
    if not isinstance(entries, list):
        structure.problems.append(f"{kind} must be a list of tables, [[{kind}]], not {shown(entries)}")
        return []
    return [structure.choose(kind, entry, f"{kind}[{place}]") for place, entry in enumerate(entries, 1)]


def _repeated(entries: Any) -> list[str]:
    tables = [e for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []
    names = [e["use"] for e in tables if isinstance(e.get("use"), str)]
    return [f"evaluators: {name!r} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})]
