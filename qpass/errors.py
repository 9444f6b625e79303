"""Every mistake a user can make, as one readable error: the rule, the name, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class QpassError(Exception):
    """The user's mistake. The command line prints it without a traceback and exits with 2."""

    exit_code = 2


class RecipeError(QpassError):
    """A recipe that cannot be carried out. It carries every mistake found, not only the first."""

    def __init__(self, problems: str | Sequence[str], source: str = "recipe") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.source = source
        super().__init__(self.__str__())

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.source}: {self.problems[0]}"
        listed = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))
        return f"{self.source}: {len(self.problems)} mistakes\n{listed}"


class PluginError(QpassError):
    """A plugin that cannot be imported, returns a wrong thing, or clashes with another."""


class PreconditionError(QpassError):
    """A pass met a graph that lacks what it needs."""


class TraceError(QpassError):
    """A module that cannot be traced; names the module and the source line that stopped it."""


class ModelError(QpassError):
    """A model that is missing, cut short, of an unknown class, or cannot do what was asked."""


class ArtifactError(QpassError):
    """A file of ours that is missing, damaged, too new, or asks for an op that is not allowed."""


class DeviceError(QpassError):
    """A device that is not there."""


class StorageError(QpassError):
    """A disk that is full, read-only, or otherwise refuses a file."""


class OutOfMemoryError(QpassError):
    """More memory was asked for than there is."""


def out_of_memory(error: BaseException) -> OutOfMemoryError | None:
    """The error as one of ours, where it says that memory ran out; torch has no type of its own for that on a CPU.

    >>> out_of_memory(RuntimeError("x")) is None
    True
    >>> str(out_of_memory(MemoryError())).partition(";")[0]
    'memory ran out'
    """
    if isinstance(error, QpassError):
        return None
    text = str(error).strip()
    torchs = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in text
    if not (isinstance(error, MemoryError) or torchs):
        return None
    first = text.splitlines()[0] if text else ""
    found = OutOfMemoryError(
        f"memory ran out{f' ({first})' if first else ''}; try smaller batches (--set sampling.batch=8, --set "
        '"passes.*.batch=8"), or a smaller memory_budget, and give the same command again: it resumes'
    )
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known ones, or all of them.

    >>> did_you_mean("brecc", ["brecq", "assign"])
    "did you mean 'brecq'?"
    >>> did_you_mean("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    rest = f" and {len(names) - 24} more" if len(names) > 24 else ""
    return "known: " + (", ".join(names[:24]) or "none") + rest
