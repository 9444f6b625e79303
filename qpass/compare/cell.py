"""One cell in a process of its own: `python -m qpass.compare.cell`, told what to do by a line of JSON.

Its standard input is also its lifeline: when whoever started it is gone, however that ended, so is the cell. What it
has finished by then is kept, and the next comparison goes on from there.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpass.errors import QpassError, out_of_memory
from qpass.files import write_file

if TYPE_CHECKING:
    from qpass.recipe import Recipe

TRACE = "error.txt"  # in the cell's folder: the traceback of what stopped it


def main() -> int:
    """Carry out the order, and answer in one line what came of it."""
    orders = io.FileIO(0, closefd=False)
    order = json.loads(orders.readline())
    threading.Thread(target=_until_alone, args=(orders,), daemon=True).start()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a plugin prints is for the reader, not for the parent
        try:
            error = carry_out(order)
        except KeyboardInterrupt:
            return 130
        from qpass.progress import peak_memory_mb

        print(json.dumps({"error": error, "peak_memory_mb": peak_memory_mb()}), file=answers)
    return 0


def carry_out(order: dict[str, Any]) -> str | None:
    """What `qpass run` does, with its knowledge of the original in a shared folder; an error as one line.

    The recipe comes as the comparison read it: its file may be another by now. Plugins come as files, so what they
    are by now is held against what they were.
    """
    import attrs

    from qpass import plugins
    from qpass.progress import for_terminal
    from qpass.recipe import from_data
    from qpass.run import run

    folder = Path(order["folder"])
    try:
        catalog = plugins.catalog([Path(file) for file in order["plugins"]])
        recipe = from_data(order["recipe"], catalog=catalog, name=order["name"])
        recipe = attrs.evolve(recipe, notes=tuple(order["notes"]))
        if order["depends_on"] is not None:
            check_unchanged(order["depends_on"], depends_on(recipe, order["device"]))
        with for_terminal() as progress:
            run(
                recipe, catalog=catalog, out=folder, device=order["device"], progress=progress,
                shared=Path(order["shared"]),
            )  # fmt: skip
    except Exception as error:
        write_file(folder / TRACE, traceback.format_exc())
        return sentence(error)
    (folder / TRACE).unlink(missing_ok=True)
    return None


def depends_on(recipe: Recipe, device: str) -> dict[str, Any]:
    """All that a cell's report depends on beside the recipe's text, by name."""
    from qpass.report.data import plain
    from qpass.run.fingerprint import facts, ground

    known: dict[str, Any] = plain(facts(recipe, ground(recipe, device.partition(":")[0])))
    return known


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a `QpassError` where something is not what it was when the comparison began with the cell.

    >>> check_unchanged({"seed": 0, "code.qpass_plugin_mine": "a"}, {"seed": 0, "code.qpass_plugin_mine": "b"})
    Traceback (most recent call last):
    qpass.errors.QpassError: changed since the comparison began: code.qpass_plugin_mine; give the same command again
    """
    if names := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        raise QpassError(f"changed since the comparison began: {', '.join(names)}; give the same command again")


def sentence(error: Exception) -> str:
    """The error with its notes on one line; of what is not the user's mistake, its type too.

    >>> sentence(QpassError("no such file\\n  look elsewhere"))
    'no such file look elsewhere'
    >>> sentence(KeyError("x"))
    "a bug in qpass or a plugin: KeyError: 'x'"
    """
    error = out_of_memory(error) or error
    text = "; ".join([str(error), *getattr(error, "__notes__", ())])
    if not isinstance(error, QpassError):
        text = f"a bug in qpass or a plugin: {type(error).__name__}: {text}"
    return " ".join(text.split())


def _until_alone(orders: io.FileIO) -> None:
    while orders.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
