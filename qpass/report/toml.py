"""A recipe as the TOML it could be run from again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_FIRST = ("seed", "memory_budget", "model", "sampling", "calibration", "passes", "evaluators", "presets")


def to_toml(recipe: Mapping[str, Any]) -> str:
    """The recipe as text; what is None is left out, as TOML has no word for it.

    >>> print(to_toml({"passes": [{"use": "assign", "weight": "int4 channel"}], "seed": 0}), end="")
    seed = 0
    <BLANKLINE>
    [[passes]]
    use = "assign"
    weight = "int4 channel"
    """
    return "\n".join(_table(recipe, ())).strip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    items = [(key, table[key]) for key in sorted(table, key=_order) if table[key] is not None]
    for key, value in items:
        if not isinstance(value, Mapping) and not _is_tables(value):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in items:
        inner = (*path, key)
        name = ".".join(map(_key, inner))
        if isinstance(value, Mapping):
            if not value or not all(isinstance(item, Mapping) for item in value.values()):
                yield from ("", f"[{name}]")
            yield from _table(value, inner)
        elif _is_tables(value):
            for item in value:
                yield from ("", f"[[{name}]]")
                yield from _table(item, inner)


def _order(key: str) -> tuple[bool, int, str]:
    return key != "use", _FIRST.index(key) if key in _FIRST else len(_FIRST), key


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(float(value)) if math.isfinite(value) else str(float(value))
        case list() | tuple():
            return "[" + ", ".join(_value(item) for item in value if item is not None) + "]"
        case Mapping():
            pairs = (f"{_key(key)} = {_value(value[key])}" for key in sorted(value) if value[key] is not None)
            return "{" + ", ".join(pairs) + "}"
        case _:
            return _string(str(value))
