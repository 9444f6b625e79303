"""Plain data to configuration objects and back, with every mistake collected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
import cattrs
import numpy as np

from qpass.analysis import Analysis
from qpass.errors import PluginError, QpassError, RecipeError, did_you_mean
from qpass.plugins import Catalog
from qpass.quantizer import Quantizer

T = TypeVar("T")
_KIND_OF = ((Quantizer, "quantizers"), (Analysis, "analyses"))


class Structure:
    """Turns tables into instances of plugin classes; `problems` gathers what is wrong, with its place."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.problems: list[str] = []
        self.converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
        for kind in (bool, int, float, str):
            self.converter.register_structure_hook(kind, _strict(kind))
        self.converter.register_structure_hook(Path, lambda value, _: Path(_strict(str)(value, str)))

    def choose(self, kind: str, table: Any, place: str) -> Any:
        """An instance of the plugin that `table["use"]` names, or None with the problem noted."""
        if isinstance(table, str):
            table = {"use": table}
        if not isinstance(table, Mapping):
            self.problems.append(f"{place}: must be a table with `use`, not {shown(table)}")
            return None
        options = dict(table)
        name = options.pop("use", None)
        if not isinstance(name, str):
            self.problems.append(
                f'{place}: `use` must name one of the {kind}, as in use = "..."; got {shown(name)}'
            )
            return None
        try:
            cls = self.catalog.find(kind, name)
        except PluginError as error:
            self.problems.append(f"{place}: {error}")
            return None
        return self.build(cls, options, f"{place} {name}")

    def build(self, cls: type[T], options: Mapping[str, Any], place: str) -> T | None:
        """An instance of an attrs class from its options, every wrong option noted."""
        before = len(self.problems)
        fields = {f.alias or f.name: f for f in attrs.fields(cls) if f.init}  # type: ignore[arg-type]
        try:
            types = _types(cls)
        except PluginError as error:
            self.problems.append(f"{place}: {error}")
            return None
        values: dict[str, Any] = {}
        for key, raw in options.items():
            if key not in fields:
                self.problems.append(f"{place}: unknown option {key!r}, {did_you_mean(key, fields)}")
                continue
            noted = len(self.problems)
            value = self._value(raw, _accepts(fields[key], types), f"{place}: {key}")
            if len(self.problems) == noted:
                values[key] = value
                self._validate(fields[key], value, place)
        for key, field in fields.items():
            if key not in options and field.default is attrs.NOTHING:
                self.problems.append(
                    f"{place}: option {key!r} is required; {field.metadata.get('help', '')}".rstrip("; ")
                )
        if len(self.problems) > before:
            return None
        try:
            return cls(**values)
        except RecipeError as error:
            self.problems += [f"{place}: {problem}" for problem in error.problems]
        except (ValueError, TypeError, QpassError) as error:
            self.problems.append(f"{place}: {_message(error)}")
        return None

    def _validate(self, field: attrs.Attribute[Any], value: Any, place: str) -> None:
        """Ask a field's validator alone, so that one wrong option does not hide another."""
        if field.validator is None or field.converter is not None:
            return
        try:
            field.validator(None, field, value)
        except (ValueError, TypeError) as error:
            message = _message(error)
            named = message if field.name in message else f"{field.name}: {message}"
            self.problems.append(f"{place}: {named}")
        except AttributeError:
            pass  # it looks at the other options, which only the whole object has: that will ask it again

    def _value(self, raw: Any, kind: Any, place: str) -> Any:
        origin, args = get_origin(kind), get_args(kind)
        cls = origin if isinstance(origin, type) else kind
        if origin in (Union, UnionType) and len(one := [a for a in args if a is not type(None)]) == 1:
            return None if raw is None else self._value(raw, one[0], place)
        if origin in (Union, UnionType) and str in args and len(one) == 2:
            one.remove(str)
            return raw if isinstance(raw, str) else self._value(raw, one[0], place)
        for base, plural in _KIND_OF:
            if isinstance(cls, type) and issubclass(cls, base):
                return self.choose(plural, raw, place)
        if isinstance(cls, type) and attrs.has(cls) and isinstance(raw, Mapping):
            return self.build(cls, raw, place)
        if origin in (list, tuple, set, frozenset):
            if not isinstance(raw, list | tuple):  # text is a sequence too, of letters
                self.problems.append(f"{place} must be {_words(kind)}, not {shown(raw)}")
                return None
            if origin is list or args[1:] == (...,):
                return origin(self._value(item, args[0], f"{place}[{n}]") for n, item in enumerate(raw, 1))
        try:
            return self.converter.structure(raw, kind)
        except Exception:  # cattrs raises many kinds; the sentence below says all a user needs
            self.problems.append(f"{place} must be {_words(kind)}, not {shown(raw)}")
            return None


def to_data(value: Any) -> Any:
    """A configuration as plain data with every option spelt out; plugins carry their name under `use`."""
    if attrs.has(type(value)):
        data = {
            f.alias or f.name: to_data(getattr(value, f.name))
            for f in attrs.fields(type(value))
            if f.init and f.metadata.get("data", True) and getattr(value, f.name) is not None
        }
        name = getattr(type(value), "name", None)
        return {"use": name, **data} if isinstance(name, str) else data
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [to_data(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(to_data(v) for v in value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def shown(value: Any) -> str:
    """A value as an error quotes it: on one line, and not for ever.

    >>> shown([1] * 100)
    '[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,...'
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a table in a table in a table
        return f"this {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _types(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception as error:
        raise PluginError(
            f"the option types of {cls.__qualname__} cannot be resolved ({error}); "
            "import them at run time, not under TYPE_CHECKING"
        ) from error


def _accepts(field: attrs.Attribute[Any], types: Mapping[str, Any]) -> Any:
    """The type that a field is given: what its converter takes, where it has one that says; Any without a type."""
    own = types.get(field.name, Any)
    if field.converter is None:
        return own
    try:
        hints = get_type_hints(field.converter)
    except Exception:  # a functools.partial and the like have none to give, and some name what is not imported
        return own
    return next((kind for name, kind in hints.items() if name != "return"), own)


def _strict(kind: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise TypeError
        return value

    return structure


_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", Path: "a path"}


def _words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if origin in (Union, UnionType):
        return " or ".join(_words(a) for a in args if a is not type(None))
    if origin in (tuple, list, set, frozenset):
        return f"a list, each entry {_words(args[0])}"
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        return f"a table, each value {_words(args[1])}" if args[1:] and args[1] is not Any else "a table"
    if isinstance(kind, type) and issubclass(kind, Enum):
        args = tuple(member.value for member in kind)
    if isinstance(kind, type) and attrs.has(kind):
        return "a table"
    if args:
        return "one of " + ", ".join(repr(a) for a in args)
    return getattr(kind, "__name__", str(kind))


def _message(error: Exception) -> str:
    """The sentence in an attrs validator's error, whose other arguments are for programs."""
    return " ".join(str(error.args[0] if error.args else error).split())
