"""What every plugin keeps to, whatever its kind."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
import pytest
import tomli_w
from installed import GIVEN, KNOWN, before, fields, in_recipes, made

from qpass.cli.describe import docstring, first_sentence
from qpass.plugins import KINDS
from qpass.quantizer import Quantizer
from qpass.recipe import from_data
from qpass.recipe.structure import Structure, to_data

EVERY = [
    pytest.param(kind, cls, id=f"{kind}-{name}") for kind in KINDS for name, cls in KNOWN.classes[kind].items()
]


def others(value: Any, kind: Any) -> Iterator[Any]:
    """Values of an option that differ from its default; not all of them need be valid."""
    if get_origin(kind) is Literal:
        yield from (choice for choice in get_args(kind) if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value / 2, value * 1.0001, 0.9)
    elif isinstance(value, str):
        yield from ("int5 channel", "linear", "scaled_linear", "other")
    elif isinstance(value, tuple):
        one = get_args(kind)[0]
        if one is Quantizer:
            yield tuple(made(each) for each in KNOWN.classes["quantizers"].values())
        else:
            yield (made(one),) if attrs.has(one) else ("a", "b")
    elif isinstance(value, dict):
        yield {"beta_schedule": "linear", "steps": [1, 2.5, True]}


def varied(cls: Any) -> Iterator[Any]:
    """The class with its defaults, then with each of its options set to something else."""
    yield made(cls)
    types = get_type_hints(cls)
    for field in fields(cls):
        if not field.metadata.get("data", True):
            continue
        for value in others(getattr(made(cls), field.name), types[field.name]):
            try:
                yield attrs.evolve(made(cls), **{field.name: type(getattr(made(cls), field.name))(value)})
            except (ValueError, TypeError):
                continue
            break


@pytest.mark.parametrize(("kind", "cls"), EVERY)
class TestEvery:
    """Whatever its kind."""

    def test_name(self, kind: str, cls: Any) -> None:
        """In kebab-case, its own, and the one it is found by."""
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.name)
        assert "name" in vars(cls)
        assert KNOWN.classes[kind][cls.name] is cls

    def test_documented(self, kind: str, cls: Any) -> None:
        """It says what it does in a sentence of its own, and every option says what it is."""
        assert re.fullmatch(r"[A-Z\"|].*[^.]\.", first_sentence(docstring(cls))), docstring(cls)
        for field in fields(cls):
            assert field.metadata.get("help", "").strip(), f"{cls.__name__}.{field.name} has no metadata['help']"
            assert not field.metadata["help"].endswith("."), field.name

    def test_frozen(self, kind: str, cls: Any) -> None:
        """Nothing about it can be changed."""
        if not in_recipes(cls):
            pytest.skip("is made in Python, from a model in memory")
        one = made(cls)
        for field in [*fields(cls), *attrs.fields(type(one))][:5]:
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(one, field.name, None)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            one.anything = 1

    def test_options_by_name(self, kind: str, cls: Any) -> None:
        """Options are given by name alone: their order means nothing."""
        assert all(field.kw_only for field in fields(cls))

    def test_options_there_and_back(self, kind: str, cls: Any) -> None:
        """As plain data, through a TOML file, and back to an equal object, whichever option is set."""
        if not in_recipes(cls):
            pytest.skip("is made in Python, from a model in memory")
        for one in varied(cls):
            structure = Structure(KNOWN)
            back = structure.choose(kind, tomllib.loads(tomli_w.dumps(to_data(one))), "here")
            assert structure.problems == []
            assert back == one
            assert type(back) is cls

    def test_defaults_are_a_recipe(self, kind: str, cls: Any) -> None:
        """A recipe that names it and no more than it must passes the plan check."""
        if not in_recipes(cls):
            pytest.skip("is made in Python, from a model in memory")
        entry = {"use": cls.name, **{f.name: GIVEN[f.name] for f in fields(cls) if f.default is attrs.NOTHING}}
        data: dict[str, Any] = {"model": {"use": "cifar10-unet"}}
        if kind == "passes":
            data["passes"] = [{"use": giver} for giver in before(cls)] + [entry]
        elif kind == "quantizers":
            data["passes"] = [{"use": "assign"}, {"use": "simulate", "weight": entry, "input": entry}]
        elif kind == "evaluators":
            data["evaluators"] = [entry]
        else:
            data[{"models": "model", "analyses": "calibration"}[kind]] = entry
        from_data(data, catalog=KNOWN)
