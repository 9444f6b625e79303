"""Changes to a recipe's tables from presets and from `--set KEY=VALUE`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from qpass.errors import did_you_mean
from qpass.recipe.structure import shown

Path = tuple[str, ...]
LISTS = ("passes", "evaluators")


def parse_assignment(text: str) -> tuple[Path, Any]:
    """`passes.brecq#2.iterations=200` as a path and a value; what is not TOML is taken as text.

    >>> parse_assignment("sampling.steps=50")
    (('sampling', 'steps'), 50)
    """
    key, equals, raw = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ValueError(f"--set {shown(text)}: write KEY=VALUE, as in --set sampling.steps=50")
    try:
        found = tomllib.loads(f"value = {raw.strip()}")
    except (ValueError, RecursionError):  # tomllib refuses numbers of thousands of digits with a bare ValueError
        found = {}
    value = found["value"] if len(found) == 1 else raw
    return tuple(part.strip() for part in key.split(".")), value


def leaves(table: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of nested tables with its path."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def everywhere(
    data: Mapping[str, Any], changes: Sequence[tuple[Path, Any]], classes: Mapping[str, type]
) -> tuple[list[tuple[Path, Any]], list[str]]:
    """`passes.*.OPTION` as a change of each pass in `data` that has the option, in its place among the changes.

    There may be none such, so that one command fits many recipes; that no pass of `classes` has it is a mistake.
    """
    found: list[tuple[Path, Any]] = []
    problems: list[str] = []
    options = {name: {f.alias for f in attrs.fields(cls) if f.init} for name, cls in classes.items()}
    swapped = {path[1]: value for path, value in changes if path[0] == "passes" and path[2:] == ("use",)}
    for path, value in changes:
        if path[:2] != ("passes", "*") or len(path) < 3:
            found.append((path, value))
            continue
        if not any(path[2] in names for names in options.values()):
            near = did_you_mean(path[2], set().union(*options.values()))
            problems.append(f"--set {'.'.join(path)}: no pass has the option {path[2]!r}, {near}")
        entries = data.get("passes")
        used = (
            [e.get("use") if isinstance(e, Mapping) else e for e in entries] if isinstance(entries, list) else []
        )
        for place, name in enumerate(used):
            count = used[: place + 1].count(name)
            now = swapped.get(f"{name}#{count}", swapped.get(str(name), name) if count == 1 else name)
            if isinstance(now, str) and path[2] in options.get(now, ()):
                found.append((("passes", f"{name}#{count}", *path[2:]), value))
    return found, problems


def override(
    data: dict[str, Any], changes: Sequence[tuple[Path, Any]], source: str, evaluators: Collection[str] = ()
) -> list[str]:
    """Apply changes to recipe data in place; returns what could not be applied.

    Changing a table's `use` clears its other options, which belonged to another plugin; those given beside it are meant
    for the new one, wherever they stand and by whichever of both names. An option of one of the known `evaluators` that
    the recipe does not have adds it: unlike passes, they have no order.
    """
    problems: list[str] = []
    old = {id(e): e.get("use") for key in LISTS for e in _tables(data.get(key))}
    # a new `use` first, and a pass's own before those inside it
    for path, value in sorted(changes, key=lambda change: len(change[0]) if _renames(change[0]) else 99):
        name = ".".join(path)
        target: Any = data
        rest = path
        if path[0] == "presets":
            problems.append(f"{source} {name}: a preset is chosen with --preset, not changed")
            continue
        if path[0] in LISTS:
            if len(path) < 3:
                problems.append(f"{source} {name}: say which option, as in {path[0]}.NAME.OPTION=VALUE")
                continue
            entries = data.get(path[0])
            target = _entry(entries, path[1], old)
            tables = entries if isinstance(entries, list) else []
            used = [str(e.get("use")) for e in _tables(entries)]
            addable = evaluators if path[0] == "evaluators" and isinstance(entries, list | None) else ()
            if path[1] in addable and path[1] not in used:
                target = {"use": path[1]}
                data["evaluators"] = [*tables, target]
            if target is None:
                near = did_you_mean(path[1], [*used, *addable])
                problems.append(f"{source} {name}: the recipe has no {path[1]!r} in {path[0]}, {near}")
                continue
            rest = path[2:]
        for key in rest[:-1]:
            if isinstance(target.get(key), str):
                target[key] = {"use": target[key]}  # the short way to write a table of nothing else
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                problems.append(f"{source} {name}: {key!r} is not a table")
                break
        else:
            if rest[-1] == "use" and len(path) > 1 and target.get("use") != value:
                target.clear()
            target[rest[-1]] = value
    return problems


def _renames(path: Path) -> bool:
    """Whether the path sets which plugin a table is for."""
    return path[-1] == "use"


def _tables(entries: Any) -> list[dict[str, Any]]:
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def _entry(entries: Any, name: str, old: Mapping[int, Any]) -> dict[str, Any] | None:
    """The entry that had that name before all changes, or that has it now; `name#2` is the second of it."""
    match = re.fullmatch(r"(.+?)(?:#([1-9]\d{0,5}))?", name)
    if match is None:
        return None
    tables, place = _tables(entries), int(match[2] or 1) - 1
    for same in (
        [e for e in tables if old.get(id(e)) == match[1]],
        [e for e in tables if e.get("use") == match[1]],
    ):
        if place < len(same):
            return same[place]
    return None
