"""Whatever is done to a recipe, it is either carried out or refused in a sentence; it never crashes the reader."""

from __future__ import annotations

import copy
import datetime
import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpass.errors import RecipeError
from qpass.plugins import Catalog
from qpass.recipe import SECTIONS, from_data, shipped
from qpass.recipe.override import parse_assignment
from qpass.recipe.structure import shown

SHIPPED = [tomllib.loads(path.read_text(encoding="utf-8")) for path in shipped().values()]
WORDS = (
    "use", "assign", "simulate", "mse", "absmax", "percentile", "drift", "size", "cifar10-dit", "diffusers", "dit",
    "uniform-steps", "int4 channel", "int8 tensor time:4", "float", "same", "nf4 group:64", "log2 token dynamic",
    "ddpm", "4GB", "0KB", "rows", "weight", "input", "rules", "keep", "match", "#2", "assign#2", "assign#0", *SECTIONS,
)  # fmt: skip
SPECIAL = (
    0,
    -1,
    1,
    2**31,
    2**63,
    10**4000,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "\0",
    "\ud800",
)
DATES = (
    datetime.date(1, 1, 1),
    datetime.time(23, 59, 59, 999999),
    datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC),
)

texts = st.sampled_from(WORDS) | st.text(max_size=12)
scalars = st.sampled_from(SPECIAL) | st.sampled_from(DATES) | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
quick = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def places(node: Any) -> Iterator[Any]:
    """Every table and list of a recipe, outermost first."""
    if isinstance(node, dict | list):
        yield node
        for inner in node.values() if isinstance(node, dict) else node:
            yield from places(inner)


@st.composite
def typos(draw: st.DrawFn, word: str) -> str:
    """The word with a letter too many, too few, or another."""
    at = draw(st.integers(0, len(word)))
    return word[:at] + draw(st.sampled_from(["", "x", "É", " ", ".", "#"])) + word[at + draw(st.integers(0, 1)) :]


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe that ships, after up to five accidents."""
    data = copy.deepcopy(draw(st.sampled_from(SHIPPED)))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.sampled_from([p for p in places(data) if p] or [data]))
        (mutate_list if isinstance(place, list) else mutate_table)(draw, place)
    return data


def mutate_table(draw: st.DrawFn, table: dict[str, Any]) -> None:
    if not table:
        table[draw(texts)] = draw(values)
        return
    key = draw(st.sampled_from(sorted(table)))
    match draw(st.sampled_from(["delete", "rename", "replace", "add", "misspell", "swap"])):
        case "delete":
            del table[key]
        case "rename":
            table[draw(typos(key))] = table.pop(key)
        case "replace":
            table[key] = draw(values)
        case "add":
            table[draw(texts)] = draw(values)
        case "misspell":
            if isinstance(table[key], str):
                table[key] = draw(typos(table[key]))
        case "swap":
            other = draw(st.sampled_from(sorted(table)))
            table[key], table[other] = table[other], table[key]


def mutate_list(draw: st.DrawFn, entries: list[Any]) -> None:
    at = draw(st.integers(0, len(entries) - 1))
    match draw(st.sampled_from(["delete", "duplicate", "reverse", "insert", "replace", "shorten"])):
        case "delete":
            del entries[at]
        case "duplicate":
            entries.append(copy.deepcopy(entries[at]))
        case "reverse":
            entries.reverse()
        case "insert":
            entries.insert(at, draw(values))
        case "replace":
            entries[at] = draw(values)
        case "shorten":
            if isinstance(entries[at], dict):
                entries[at] = entries[at].get("use")


@st.composite
def changes(draw: st.DrawFn) -> str:
    """What might follow --set: often near something that makes sense, sometimes any text at all."""
    if draw(st.booleans()):
        return draw(st.text(max_size=20))
    path = ".".join(draw(st.lists(texts, min_size=1, max_size=4)))
    value = draw(
        st.sampled_from(['"x"', "[1, [2]]", "{use = 1}", "{a.b.c = 2}", "1979-05-27", "nan", "0x" + "f" * 5000])
        | texts
    )
    return f"{path}={value}"


def problems(data: dict[str, Any], known: Catalog, **rest: Any) -> tuple[str, ...]:
    """What the reader finds wrong, or nothing where the recipe also reads back as it was written."""
    try:
        recipe = from_data(data, catalog=known, **rest)
    except RecipeError as error:
        return error.problems
    again = from_data(tomllib.loads(recipe.toml()), catalog=known)
    assert again.data() == recipe.data()
    return ()


def check(data: dict[str, Any], known: Catalog, **rest: Any) -> None:
    """A recipe, or sentences that say what is wrong with it; the data itself is left as it was."""
    before = repr(data)
    for problem in problems(data, known, **rest):
        assert problem.strip()
        assert len(problem) < 1000
    assert repr(data) == before


@settings(quick, max_examples=500)
@given(data=recipes())
def test_mutated_recipes(known: Catalog, data: dict[str, Any]) -> None:
    """A recipe after accidents."""
    check(data, known)


@settings(quick, max_examples=150)
@given(data=st.dictionaries(texts, values, max_size=4))
def test_garbage(known: Catalog, data: dict[str, Any]) -> None:
    """A recipe that never was one."""
    check(data, known)


@settings(quick, max_examples=200)
@given(data=st.sampled_from(SHIPPED) | recipes(), overrides=st.lists(changes(), min_size=1, max_size=3))
def test_overrides(known: Catalog, data: dict[str, Any], overrides: list[str]) -> None:
    """Any text after --set, on whole and on broken recipes."""
    check(data, known, overrides=overrides)


@settings(quick, max_examples=100)
@given(data=recipes(), preset=st.sampled_from(["fast", "fsat", "", "mine"]), mine=values)
def test_presets(known: Catalog, data: dict[str, Any], preset: str, mine: Any) -> None:
    """Any preset, of any content."""
    if isinstance(data.get("presets"), dict):
        data["presets"]["mine"] = mine
    check(data, known, preset=preset)


@settings(quick, max_examples=200)
@given(text=st.text(max_size=30) | changes())
def test_assignments(text: str) -> None:
    """A path and a value, or a ValueError that quotes the text."""
    try:
        path, _ = parse_assignment(text)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
        assert path
        assert all(path)
    assert not said or said.startswith(f"--set {shown(text)}: write KEY=VALUE")
