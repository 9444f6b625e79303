"""Plain data to configuration objects and back, with every mistake collected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
import cattrs

from qpass.analysis import Analysis
from qpass.errors import PluginError, did_you_mean
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
            self.problems.append(f"{place}: must be a table with `use`, not {table!r}")
            return None
        options = dict(table)
        name = options.pop("use", None)
        if not isinstance(name, str):
            self.problems.append(f'{place}: `use` must name one of the {kind}, as in use = "..."; got {name!r}')
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
        fields = {f.name: f for f in attrs.fields(cls) if f.init}  # type: ignore[arg-type]
        types = _types(cls)
        values: dict[str, Any] = {}
        for key, raw in options.items():
            if key not in fields:
                self.problems.append(f"{place}: unknown option {key!r}, {did_you_mean(key, fields)}")
                continue
            field, where = fields[key], f"{place}: {key}"
            noted = len(self.problems)
            value = self._value(raw, types[key], where)
            if len(self.problems) > noted:
                continue
            values[key] = value
            if field.validator is not None:
                try:
                    field.validator(None, field, value)
                except (ValueError, TypeError) as error:
                    self.problems.append(f"{place}: {_message(error)}")
        for name, field in fields.items():
            if name not in options and field.default is attrs.NOTHING:
                self.problems.append(
                    f"{place}: option {name!r} is required; {field.metadata.get('help', '')}".rstrip("; ")
                )
        if len(self.problems) > before:
            return None
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            self.problems.append(f"{place}: {_message(error)}")
            return None

    def _value(self, raw: Any, kind: Any, place: str) -> Any:
        for base, plural in _KIND_OF:
            if isinstance(kind, type) and issubclass(kind, base):
                return self.choose(plural, raw, place)
        try:
            return self.converter.structure(raw, kind)
        except Exception:  # cattrs raises many kinds; the sentence below says all a user needs
            self.problems.append(f"{place} must be {_words(kind)}, not {raw!r}")
            return None


def to_data(value: Any) -> Any:
    """A configuration as plain data with every option spelt out; plugins carry their name under `use`."""
    if attrs.has(type(value)):
        data = {
            f.name: to_data(getattr(value, f.name))
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
    return str(value) if isinstance(value, Path) else value


def _types(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception as error:
        raise PluginError(
            f"the option types of {cls.__qualname__} cannot be resolved ({error}); "
            "import them at run time, not under TYPE_CHECKING"
        ) from error


def _strict(kind: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise TypeError
        return value

    return structure


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if origin in (Union, UnionType):
        return " or ".join(_words(a) for a in args if a is not type(None))
    if origin in (tuple, list):
        return f"a list, each entry {_words(args[0])}"
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        return "a table"
    if args:
        return "one of " + ", ".join(repr(a) for a in args)
    return getattr(kind, "__name__", str(kind))


def _message(error: Exception) -> str:
    """The sentence in an attrs validator's error, whose other arguments are for programs."""
    return " ".join(str(error.args[0] if error.args else error).split())
