"""Plain data to configuration objects and back: every type that an option can have."""

from __future__ import annotations

import functools
import tomllib
from enum import Enum
from pathlib import Path
from typing import Literal

import attrs
import pytest
import tomli_w
from attrs import validators as v
from faults import Data
from qpass_passes.quantizers.mse import Mse

from qpass.plugins import Catalog
from qpass.quantizer import Quantizer
from qpass.recipe.structure import Structure, to_data


class Colour(Enum):
    """An option of a few values, as some like to write it."""

    RED = "red"
    BLUE = "blue"


@attrs.frozen(kw_only=True)
class Inner:
    """A table in a table."""

    depth: int = attrs.field(default=1, validator=v.ge(1))


@attrs.frozen(kw_only=True)
class Everything:
    """Every kind of option a plugin may have."""

    text: str = "x"
    number: float = 1.0
    colour: Colour = Colour.RED
    side: Literal["left", "right"] = "left"
    maybe: int | None = None
    path: Path = Path("a/b")
    names: frozenset[str] = frozenset({"b", "a"})
    pair: tuple[int, int] = (1, 2)
    inner: Inner = attrs.field(factory=Inner)
    inners: tuple[Inner, ...] = ()
    quantizer: Quantizer | None = None
    quantizers: list[Quantizer] = attrs.field(factory=list)
    table: dict[str, float] = attrs.field(factory=dict)
    low: int = 0
    high: int = attrs.field(default=1)
    _private: int = 0
    converted: tuple[str, ...] = attrs.field(default=(), converter=tuple, validator=v.instance_of(tuple))

    @high.validator
    def _above(self, attribute: attrs.Attribute[int], value: int) -> None:
        """Looks at another option, so it cannot be asked alone."""
        if value <= self.low:
            raise ValueError(f"high must be above low, {self.low}, not {value}")


@attrs.frozen(kw_only=True)
class Hasty:
    """Options without a type, as first drafts have them, and converters that tell none."""

    s = attrs.field(default=4.0)
    base = attrs.field(default="7", converter=functools.partial(int, base=10))
    typed: int = attrs.field(default=0, converter=functools.partial(round, ndigits=None))


class TestStructure:
    """Tables as objects, and back."""

    @pytest.mark.parametrize(
        "made",
        [
            Everything(),
            Everything(
                text="é\n", number=2, colour=Colour.BLUE, side="right", maybe=5, path=Path("/"),
                names=frozenset(), pair=(3, 4), inner=Inner(depth=2), inners=(Inner(), Inner(depth=3)),
                quantizer=Mse(norm=2.0), quantizers=[Mse()], table={"a": 1.5}, low=3, high=4, private=7,
                converted=("z",),
            ),
        ],
        ids=["defaults", "all set"],
    )  # fmt: skip
    def test_there_and_back(self, known: Catalog, made: Everything) -> None:
        """Plain data that TOML can hold, and from it an equal object."""
        structure = Structure(known)
        plain = tomllib.loads(tomli_w.dumps(to_data(made)))
        assert structure.build(Everything, plain, "here") == made
        assert structure.problems == []

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"colour": "green"}, "here: colour must be one of 'red', 'blue', not 'green'"),
            ({"side": "up"}, "here: side must be one of 'left', 'right', not 'up'"),
            ({"maybe": "x"}, "here: maybe must be a whole number, not 'x'"),
            ({"names": "ab"}, "here: names must be a list, each entry text, not 'ab'"),
            ({"pair": [1]}, "here: pair must be a list, each entry a whole number, not [1]"),
            ({"inner": 5}, "here: inner must be a table, not 5"),
            ({"inner": {"depth": 0}}, "here: inner: 'depth' must be >= 1: 0"),
            ({"inners": [{}, {"depht": 1}]}, "here: inners[2]: unknown option 'depht', did you mean 'depth'?"),
            ({"quantizer": "mes"}, "here: quantizer: unknown quantizer 'mes', did you mean 'mse'?"),
            ({"quantizers": ["mse", "mes"]}, "here: quantizers[2]: unknown quantizer 'mes', did you mean 'mse'?"),
            ({"table": {"a": "b"}}, "here: table must be a table, each value a finite number, not {'a': 'b'}"),
            ({"low": 5}, "here: high must be above low, 5, not 1"),
            ({"number": float("inf")}, "here: number must be a finite number, not inf"),
            ({"_private": 1}, "here: unknown option '_private', did you mean 'private'"),
        ],
        ids=str,
    )
    def test_what_is_wrong(self, known: Catalog, options: Data, said: str) -> None:
        """One sentence with the place, the rule and the value."""
        structure = Structure(known)
        assert structure.build(Everything, options, "here") is None
        (problem,) = structure.problems
        assert problem.startswith(said)

    def test_without_a_type(self, known: Catalog) -> None:
        """An option without a type takes what it is given; one that has a type is still held to it."""
        structure = Structure(known)
        assert structure.build(Hasty, {"s": "x", "base": "12", "typed": 3}, "here") == Hasty(
            s="x", base="12", typed=3
        )
        assert structure.problems == []
        assert structure.build(Hasty, {"typed": "3"}, "here") is None
        assert structure.problems == ["here: typed must be a whole number, not '3'"]
