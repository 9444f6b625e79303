"""Carry out a comparison cell by cell. A cell that fails stops no other; one that is finished is not begun again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from qpass.compare.cell import TRACE, depends_on
from qpass.compare.plan import Cell
from qpass.files import UNFINISHED, locked, sha256, sweep, write_file
from qpass.progress import Progress
from qpass.report.data import to_json
from qpass.report.human import duration
from qpass.run.fingerprint import digest

SCHEMA = 1
RECORD = "cell.json"  # in the cell's folder: under what it was finished, and what that took
VARYING = (
    "seconds",
    "total_seconds",
    "peak_memory_mb",
    "resumed",
    "resumed_passes",
    "timed",
)  # all else is equal in equal comparisons
WAITING: Mapping[str, Any] = {"status": "waiting", "error": None, "metrics": [], **dict.fromkeys(VARYING)}


@attrs.frozen(kw_only=True)
class Settings:
    """What all cells of a comparison are given alike."""

    out: Path
    device: str = "cpu"
    plugins: tuple[Path, ...] = ()

    @property
    def shared(self) -> Path:
        """What cells of one model know of it in common."""
        return self.out / "shared"


Listener = Callable[[Mapping[str, Any]], None]


def compare(
    cells: Sequence[Cell], settings: Settings, progress: Progress, heard: Listener = lambda document: None
) -> dict[str, Any]:
    """The finished comparison as plain data; `heard` is told of it whenever a cell has ended."""
    found = [{**_names(cell), **WAITING} for cell in cells]
    busy = (
        f"another comparison is at work in {str(settings.out)!r}; wait for it, or choose another folder with --out"
    )
    with locked(settings.out / ".lock", busy, progress.say):
        sweep(settings.out)
        sweep(settings.shared, f"**/{UNFINISHED}*")
        for place, cell in enumerate(cells):
            progress.say(_headline(place, cell, found))
            found[place] = {**_names(cell), **_cell(cell, settings, progress)}
            heard({"schema": SCHEMA, "cells": found})
    return {"schema": SCHEMA, "cells": found}


def _names(cell: Cell) -> dict[str, Any]:
    return {
        "recipe": cell.recipe.name, "model": cell.model, "seed": cell.recipe.seed, "folder": cell.folder.name,
    }  # fmt: skip


def _headline(place: int, cell: Cell, found: Sequence[Mapping[str, Any]]) -> str:
    """Which cell of how many, and how long the rest may take, going by those that are finished."""
    took = [row["total_seconds"] for row in found if row["total_seconds"]]
    left = (len(found) - place) * sum(took) / len(took) if took else None
    rest = f", about {duration(left)} left" if left is not None else ""
    return f"cell {place + 1} of {len(found)}: {cell.title}{rest}"


def _cell(cell: Cell, settings: Settings, progress: Progress) -> dict[str, Any]:
    known = _depends_on(cell, settings.device)
    mark = None if known is None else digest([known, cell.recipe.data(), cell.recipe.notes])
    before = _record(cell.folder)
    if mark is not None and before.get("fingerprint") == mark and (kept := _finished(cell.folder, before)):
        progress.say("  kept: finished earlier under the same conditions")
        return kept
    # begun and never ended: what the process that goes on with it reports is not the whole
    resumed = before.get("fingerprint") == mark and before.get("status") == "begun"
    record: dict[str, Any] = {"fingerprint": mark, "status": "begun"}
    write_file(cell.folder / RECORD, to_json(record))
    started = time.monotonic()
    answer = _in_a_process(cell, settings, known)
    record |= {
        "status": "failed" if answer["error"] else "done",
        "total_seconds": time.monotonic() - started,
        "peak_memory_mb": answer["peak_memory_mb"],
        "resumed": resumed,
    }
    if not answer["error"]:
        record["files"] = {name: sha256(cell.folder / name) for name in ("report.json", "timings.json")}
    write_file(cell.folder / RECORD, to_json(record))
    if finished := _finished(cell.folder, record):
        return finished
    progress.say(f"  failed: {answer['error']}")
    if (cell.folder / TRACE).exists():
        progress.say(f"  its traceback: {cell.folder / TRACE}")
    rest = {key: record[key] for key in ("total_seconds", "peak_memory_mb", "resumed")}
    return {**WAITING, **rest, "status": "failed", "error": answer["error"]}


def _depends_on(cell: Cell, device: str) -> dict[str, Any] | None:
    """All that the cell's report depends on; None where that cannot be told, which the run itself will explain."""
    try:
        return depends_on(cell.recipe, device)
    except Exception:  # a model that is not there, an adapter with a mistake in it: no reason to stop other cells
        return None


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _finished(folder: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a finished cell says of itself, if it is finished and its files are whole."""
    if record.get("status") != "done" or not (folder / "artifact").is_dir():
        return None
    try:
        if any(sha256(folder / name) != kept for name, kept in record["files"].items()):
            return None
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        timings = json.loads((folder / "timings.json").read_text(encoding="utf-8"))
        return {
            "status": "done",
            "error": None,
            "metrics": report["metrics"],
            "seconds": sum(step["seconds"] for step in timings["passes"]),
            "total_seconds": record["total_seconds"],
            # the process's own, or that of whoever made the results it took
            "peak_memory_mb": max(record["peak_memory_mb"], timings["peak_memory_mb"]),
            "resumed": record["resumed"],
            "resumed_passes": [step["pass"] for step in timings["passes"] if step["resumed"]],
            "timed": timings["metrics"],
        }
    except (OSError, ValueError, KeyError):
        return None


def _in_a_process(cell: Cell, settings: Settings, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Have a process carry the cell out; its answer, or what became of it."""
    order = {
        "recipe": cell.recipe.data(), "name": cell.recipe.name, "notes": cell.recipe.notes, "depends_on": known,
        "folder": str(cell.folder), "device": settings.device, "shared": str(settings.shared),
        "plugins": [str(file) for file in settings.plugins],
    }  # fmt: skip
    # `-m` looks for modules in the current folder first: so shall the cell where we do, and else not
    alike = () if sys.path[:1] in ([""], [os.getcwd()]) else ("-P",)
    command = [sys.executable, *alike, "-m", "qpass.compare.cell"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            answer = process.stdout.read()  # until it ends: it closes its output then
        except BrokenPipeError:  # it ended before it was told anything
            answer = ""
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()  # where we are interrupted, it leaves with us
    if process.returncode == 130:
        raise KeyboardInterrupt
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError:
        return {"error": _ended(process.returncode), "peak_memory_mb": None}
    return found


def _ended(code: int) -> str:
    """
    >>> _ended(-9)
    'the process was ended by signal 9, which is what the system does where memory runs out'
    """
    why = ", which is what the system does where memory runs out" if code == -9 else ""
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"the process {how}{why}"
