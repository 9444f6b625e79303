"""The plugins that are installed, and an instance of each."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
from torch.fx import GraphModule

from qpass.manager import PassContext, PassManager
from qpass.plugins import catalog

KNOWN = catalog()
# options that must be given, or that keep a test short
GIVEN: dict[str, Any] = {"path": "somewhere", "match": "*", "against": "images.npz"}
SHORT: dict[str, Any] = {
    "samples": 4,
    "steps": 2,
    "rows": 4,
    "images": 4,
    "iterations": 2,
    "repeats": 1,
    "warmup": 0,
}


def every(kind: str) -> pytest.MarkDecorator:
    classes = KNOWN.classes[kind]
    return pytest.mark.parametrize("cls", classes.values(), ids=classes.keys())


def fields(cls: Any) -> list[attrs.Attribute[Any]]:
    """The options of a class."""
    return [field for field in attrs.fields(cls) if field.init]


def in_recipes(cls: Any) -> bool:
    """Whether a recipe can name it: what must be handed over in Python is no plain data."""
    return all(f.metadata.get("data", True) or f.default is not attrs.NOTHING for f in fields(cls))


def made(cls: Any, **options: Any) -> Any:
    """An instance, with what must be given."""
    required = {f.name: GIVEN[f.name] for f in fields(cls) if f.default is attrs.NOTHING}
    return cls(**required, **options)


def short(cls: Any) -> Any:
    """An instance that does little."""
    return made(cls, **{f.name: SHORT[f.name] for f in fields(cls) if f.name in SHORT})


def before(cls: Any) -> list[str]:
    """Names of the passes that must stand before this one, found by what each needs and provides."""
    found: list[str] = []
    for fact in sorted(cls.needs):
        givers = [c for c in KNOWN.classes["passes"].values() if fact in c.provides]
        assert givers, f"no pass provides {fact!r}"
        fewest = min(givers, key=lambda c: len(c.needs))
        found += [name for name in (*before(fewest), fewest.name) if name not in found]
    return found


def run(passes: list[Any], context: PassContext) -> GraphModule:
    return PassManager(passes).run(copy.deepcopy(context.reference), context).graph
