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
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

STATUS = Path("/proc/self/status")  # Linux: what the kernel counts of this process alone


class Task:
    """One piece of work of known length. This one is silent."""

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more of it is done."""

    def skip(self, amount: int) -> None:
        """Say that `amount` of it need not be done: it was kept from before, and says nothing of how fast work goes."""

    def weigh(self, each: float) -> None:
        """Say what each unit costs from here on, as a part of the cost that was given for all of it."""


class Progress:
    """Silent progress; the base of the two that speak."""

    @contextmanager
    def task(self, title: str, total: int, cost: float = 0.0) -> Iterator[Task]:
        """Announce work of `total` units for as long as the block runs.

        Where units differ in length, `cost` is that of all of them, in any measure, and `Task.weigh` tells each one's.
        """
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


class _Paced(Task):
    """A task that knows how long the rest will take, going by the work done since it began."""

    def __init__(self, total: int, cost: float) -> None:
        self.total, self.done = total, 0
        self.each, self.left, self.worked = 1.0, cost or float(total), 0.0
        self.started = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self.worked += amount * self.each
        self._less(amount)

    def skip(self, amount: int) -> None:
        self._less(amount)
        if not self.worked:
            self.started = time.monotonic()  # what came before was reading, not work

    def _less(self, amount: int) -> None:
        self.done += amount
        self.left -= amount * self.each

    def weigh(self, each: float) -> None:
        self.each = each

    def rest(self) -> str:
        """The time left in words, once there is something to go by."""
        if not self.worked:
            return ""
        return f"{span((time.monotonic() - self.started) / self.worked * max(self.left, 0.0))} left"


class _LineTask(_Paced):
    def __init__(self, title: str, total: int, cost: float, out: TextIO, every: float) -> None:
        super().__init__(total, cost)
        self.title, self.out, self.every = title, out, every
        self.spoke = self.started

    def advance(self, amount: int = 1) -> None:
        super().advance(amount)
        now = time.monotonic()
        if now - self.spoke >= self.every and self.worked and self.done < self.total:
            self.spoke = now
            print(f"  {self.title}: {self.done}/{self.total}, {self.rest()}", file=self.out, flush=True)


class LineProgress(Progress):
    """One line when work starts, ends, and every few seconds between."""

    def __init__(self, out: TextIO | None = None, every: float = 5.0) -> None:
        self.out, self.every = out or sys.stderr, every

    @contextmanager
    def task(self, title: str, total: int, cost: float = 0.0) -> Iterator[Task]:
        started = time.monotonic()
        yield _LineTask(title, total, cost, self.out, self.every)
        took = time.monotonic() - started
        self.say(f"  {title}: done in {took:.1f} s, peak memory {peak_memory_mb():.0f} MB")

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


class _BarTask(_Paced):
    def __init__(self, total: int, cost: float, bars: RichProgress, bar: TaskID) -> None:
        super().__init__(total, cost)
        self.bars, self.bar = bars, bar

    def advance(self, amount: int = 1) -> None:
        super().advance(amount)
        self.bars.update(self.bar, completed=self.done, left=self.rest(), memory=f"{peak_memory_mb():.0f} MB")


class BarProgress(Progress):
    """Nested bars that vanish when done, leaving one line each."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[memory]}"),
            console=console,
            transient=True,
        )

    @contextmanager
    def task(self, title: str, total: int, cost: float = 0.0) -> Iterator[Task]:
        started = time.monotonic()
        bar = self.bars.add_task(title, total=total, left="", memory="")
        try:
            yield _BarTask(total, cost, self.bars, bar)
        finally:
            self.bars.remove_task(bar)
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
