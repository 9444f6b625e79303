"""A plugin class in plain words: what it is, whose it is, and its options, read from its attrs fields."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import attrs

# facts about a class of each kind that a recipe's author wants to know, besides its options
FACTS: Mapping[str, tuple[str, ...]] = {
    "passes": ("needs", "provides", "conflicts", "preserves"),
    "evaluators": ("needs", "exact"),
    "analyses": ("of", "stored"),
}
# options that hold another plugin, by the module of its contract
_NAMED = {"qpass.quantizer": "quantizers", "qpass.analysis": "analyses"}
_FACTORY: Any = attrs.Factory  # typed as a function, and yet a class
_OPTIONAL_TAIL = re.compile(r"\s*\|\s*None$")


@attrs.frozen(kw_only=True)
class Option:
    """One option of a recipe's section. `default` is TOML text; None means it must be given."""

    name: str
    type: str
    default: str | None
    help: str
    valid: str

    @property
    def required(self) -> bool:
        return self.default is None


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line.

    >>> first_sentence("Fold scales, e.g. Those of TCR, into\\nweights. Then more.")
    'Fold scales, e.g. Those of TCR, into weights.'
    """
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!al\.)(?<!Eq\.)\s+(?=[A-Z`'\"(])", paragraph)[0]


def docstring(cls: type) -> str:
    """The class's own docstring. One inherited from the contract would say nothing about it."""
    return inspect.cleandoc(cls.__doc__ or "")


def origin(cls: type) -> str:
    """Where the class comes from: the distribution that brings it, or the file given with --plugin.

    >>> origin(Option)
    'qpass'
    """
    top = cls.__module__.partition(".")[0]
    if top == "qpass":
        return "qpass"
    for entry in importlib.metadata.entry_points(group="qpass"):
        if entry.module.partition(".")[0] == top and entry.dist is not None:
            return entry.dist.name
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or top


def facts(kind: str, cls: type) -> dict[str, str | bool | list[str]]:
    """Class attributes such as a pass's `needs`, as plain data."""
    return {fact: _fact(getattr(cls, fact)) for fact in FACTS.get(kind, ())}


def _fact(value: Any) -> str | bool | list[str]:
    if isinstance(value, bool | str):
        return value
    return sorted(getattr(item, "name", item.__name__) if isinstance(item, type) else str(item) for item in value)


def options(cls: Any) -> tuple[Option, ...]:
    """The fields of an attrs class that a recipe may set.

    >>> @attrs.frozen(kw_only=True)
    ... class Round:
    ...     steps: int = attrs.field(default=20, validator=attrs.validators.ge(1), metadata={"help": "how many"})
    >>> options(Round)
    (Option(name='steps', type='int', default='20', help='how many', valid='at least 1'),)
    """
    types = _types(cls)
    return tuple(
        Option(
            name=field.alias or field.name,
            type=_type_name(types.get(field.name, field.type)),
            default=_default(field),
            help=str(field.metadata.get("help", "")),
            valid=rule(field.validator) or _choices(types.get(field.name)),
        )
        for field in attrs.fields(cls)
        if field.init
    )


def _types(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception:  # names imported under TYPE_CHECKING alone: the annotations' text will do
        return {}


def _type_name(annotation: Any) -> str:
    if annotation is None:
        return "any"
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(sorted({type(value).__name__ for value in typing.get_args(annotation)}))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        text = annotation.__name__
    else:
        text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(annotation))
    return _OPTIONAL_TAIL.sub("", text)  # TOML has no null; the default says that it may be left out


def _choices(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return _one_of(typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _one_of(member.value for member in annotation)
    if isinstance(annotation, type) and annotation.__module__ in _NAMED:
        return f"a name from `qpass list {_NAMED[annotation.__module__]}`"
    return ""


def _default(field: attrs.Attribute[Any]) -> str | None:
    value: Any = field.default
    if value is attrs.NOTHING:
        return None
    if isinstance(value, _FACTORY):
        if value.takes_self:
            return "depends on the others"
        value = value.factory()
    return toml(value)


def toml(value: Any) -> str:
    """A value as a recipe would hold it.

    >>> toml(("a", "b")), toml(True), toml(None)
    ('["a", "b"]', 'true', 'not set')

    What a recipe names by `use`, such as a quantizer, is given by its name.
    """
    if value is None:
        return "not set"
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, Enum):
        value = value.value
    if attrs.has(type(value)) and isinstance(getattr(value, "name", None), str):
        value = value.name
    return json.dumps(value, ensure_ascii=False, default=str)


_COMPARED = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}


def rule(validator: Any) -> str:
    """What a validator demands, in words; empty where it says nothing that the type does not.

    >>> from attrs import validators as v
    >>> rule(v.and_(v.ge(0), v.lt(1))), rule(v.in_(("a", "b"))), rule(v.optional(v.max_len(3)))
    ('at least 0, below 1', '"a" or "b"', 'at most 3 long')
    """
    match validator:
        case None:
            return ""
        case object(_validators=parts):
            return ", ".join(filter(None, map(rule, parts)))
        case object(validators=parts):
            return " or ".join(filter(None, map(rule, parts)))
        case object(compare_op=sign, bound=bound):
            return f"{_COMPARED.get(sign, sign)} {bound}"
        case object(options=values):
            return _one_of(values)
        case object(max_length=length):
            return f"at most {length} long"
        case object(min_length=length):
            return f"at least {length} long"
        case object(pattern=pattern):
            return f"text like {pattern.pattern}"
        case object(member_validator=each):
            return f"each {inner}" if (inner := rule(each)) else ""
        case object(validator=inner) if type(validator).__name__ == "_OptionalValidator":
            return rule(inner)
    if inspect.isfunction(validator):
        return first_sentence(validator.__doc__ or "").rstrip(".")
    return ""


def _one_of(values: Iterable[Any]) -> str:
    *head, last = [toml(value) for value in values]
    return f"{', '.join(head)} or {last}" if head else last
