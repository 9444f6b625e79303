"""Progress of long work: bars with time left and peak memory on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

STATUS = Path("/proc/self/status")  # Linux: what the kernel counts of this process alone


class Task:
    """One piece of work of known length. This one is silent."""

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more of it is done."""

    def skip(self, amount: int) -> None:
        """Say that `amount` of it need not be done: it was kept from before, and says nothing of how fast work goes."""


class Progress:
    """Silent progress; the base of the two that speak."""

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """Announce work of `total` units for as long as the block runs."""
        yield Task()

    def say(self, line: str) -> None:
        """One line for the reader."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def peak_memory_mb() -> float:
    """The largest resident size of this process so far, in MB."""
    try:
        status = STATUS.read_text()
    except OSError:
        status = ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
        return int(found[1]) / (1 << 10)
    # elsewhere a process may inherit the peak of the one that started it
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class _LineTask(Task):
    def __init__(self, title: str, total: int, out: TextIO, every: float) -> None:
        self.title, self.total, self.out, self.every = title, total, out, every
        self.done = self.skipped = 0
        self.started = self.spoke = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        worked, now = self.done - self.skipped, time.monotonic()
        if now - self.spoke >= self.every and worked > 0 and self.done < self.total:
            self.spoke = now
            left = (now - self.started) / worked * (self.total - self.done)
            print(f"  {self.title}: {self.done}/{self.total}, {left:.0f} s left", file=self.out, flush=True)

    def skip(self, amount: int) -> None:
        self.done += amount
        self.skipped += amount


class LineProgress(Progress):
    """One line when work starts, ends, and every few seconds between."""

    def __init__(self, out: TextIO | None = None, every: float = 5.0) -> None:
        self.out, self.every = out or sys.stderr, every

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        started = time.monotonic()
        yield _LineTask(title, total, self.out, self.every)
        took = time.monotonic() - started
        self.say(f"  {title}: done in {took:.1f} s, peak memory {peak_memory_mb():.0f} MB")

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


class _BarTask(Task):
    def __init__(self, bars: RichProgress, task: TaskID) -> None:
        self.bars, self.id = bars, task

        self.done = 0

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        self.bars.update(self.id, advance=amount, memory=f"{peak_memory_mb():.0f} MB")

    def skip(self, amount: int) -> None:
        self.done += amount
        self.bars.reset(self.id, completed=self.done)  # forgets the speed so far, which `update` would raise


class BarProgress(Progress):
    """Nested bars that vanish when done, leaving one line each."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            console=console,
            transient=True,
        )

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        started = time.monotonic()
        handle = self.bars.add_task(title, total=total, memory="")
        try:
            yield _BarTask(self.bars, handle)
        finally:
            self.bars.remove_task(handle)
        took = time.monotonic() - started
        self.say(f"  {title}: done in {took:.1f} s, peak memory {peak_memory_mb():.0f} MB")

    def say(self, line: str) -> None:
        self.bars.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()


def span(seconds: float) -> str:
    """A length of time, rounded as a person would.

    >>> span(4.2), span(200), span(40_000)
    ('4 s', '3 min', '11 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def for_terminal(out: TextIO | None = None) -> Progress:
    """Bars where a person watches, lines where a file does."""
    console = Console(file=out or sys.stderr)
    return BarProgress(console) if console.is_terminal else LineProgress(out)
