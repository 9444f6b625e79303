"""What progress says of memory is of this process alone, and of time left, of the work that was done in it."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from qpass.progress import BarProgress, LineProgress, peak_memory_mb

CHILD = "from qpass.progress import peak_memory_mb; print(peak_memory_mb())"


def test_the_peak_of_the_parent_is_not_the_childs():
    """A process started by one that has used 600 MB reports its own peak, not what the system lets it inherit."""
    held = bytearray(600 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])  # touch every page
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert peak_memory_mb() > 600
    assert 5 < float(done.stdout) < 300


def test_the_peak_rises_and_stays():
    """What was allocated and freed counts."""
    before = peak_memory_mb()
    held = b"x" * ((int(before) + 50) << 20)
    assert peak_memory_mb() >= len(held) >> 20
    del held
    assert peak_memory_mb() >= before + 50


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_was_kept_from_before_says_nothing_of_the_time_left(monkeypatch):
    """Of 100 units 60 were kept; 10 took 5 s, so the 30 that are left take 15."""
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(time, "monotonic", clock)
    with LineProgress(out, every=5.0).task("learn", 100) as task:
        task.skip(60)
        task.advance(0)
        clock.now = 5.0
        task.advance(10)
    assert "learn: 70/100, 15 s left" in out.getvalue()


def test_a_bar_forgets_the_speed_when_work_falls_away():
    """The same on a terminal: two a second, before and after 60 units fell away at once."""
    clock = Clock()
    bars = BarProgress(Console(file=io.StringIO(), force_terminal=True))
    bars.bars.get_time = clock
    with bars.task("learn", 100) as task:
        (shown,) = bars.bars.tasks

        def work() -> None:
            for _ in range(6):
                clock.now += 0.5
                task.advance()

        work()
        assert shown.time_remaining == pytest.approx(94 / 2)
        task.skip(60)
        work()
        assert (shown.completed, shown.time_remaining) == (72, pytest.approx(28 / 2))
