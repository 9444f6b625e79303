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


RISES = """
from qpass.progress import peak_memory_mb
before = peak_memory_mb()
held = b"x" * ((int(before) + 50) << 20)
size = len(held) >> 20
during = peak_memory_mb()
del held
print(before, size, during, peak_memory_mb())
"""


def test_the_peak_rises_and_stays():
    """What was allocated and freed counts. In a process of its own: to rise, it takes as much as was ever taken."""
    said = subprocess.run([sys.executable, "-c", RISES], capture_output=True, text=True, check=True).stdout
    before, size, during, after = map(float, said.split())
    assert during >= size
    assert after >= before + 50


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def test_what_was_kept_from_before_says_nothing_of_the_time_left(clock: Clock) -> None:
    """Of 100 units 60 were kept, and read in 7 s; 10 took 5 s, so the 30 that are left take 15."""
    out = io.StringIO()
    with LineProgress(out, every=5.0).task("learn", 100) as task:
        clock.now = 7.0
        task.skip(60)
        task.advance(0)
        clock.now = 12.0
        task.advance(10)
    assert "learn: 70/100, 15 s left" in out.getvalue()


def test_what_falls_away_is_not_waited_for(clock: Clock) -> None:
    """10 units took 5 s, 60 then fall away, and the 10 that follow take 5: the last 20 take 10."""
    out = io.StringIO()
    with LineProgress(out, every=4.0).task("learn", 100) as task:
        for fallen in (60, 0):
            clock.now += 5.0
            task.advance(10)
            task.skip(fallen)
    assert "learn: 10/100, 45 s left" in out.getvalue()
    assert "learn: 80/100, 10 s left" in out.getvalue()


def test_units_of_different_length(clock: Clock) -> None:
    """10 short ones take 5 s; 10 that are nine times as long are left, 45 s of them. Half of these take 17: 18."""
    out = io.StringIO()
    with LineProgress(out, every=4.0).task("learn", 20, cost=10 * 3.0 + 10 * 27.0) as task:
        task.weigh(3.0)
        clock.now = 5.0
        task.advance(10)
        task.weigh(27.0)
        clock.now = 22.0  # a little faster than was thought
        task.advance(5)
    assert "learn: 10/20, 45 s left" in out.getvalue()
    assert f"learn: 15/20, {22 / 165 * 135:.0f} s left" in out.getvalue()


def test_a_bar_has_the_same_time_left(clock: Clock) -> None:
    """On a terminal, in minutes where there are many."""
    bars = BarProgress(Console(file=io.StringIO(), force_terminal=True))
    with bars.task("learn", 100) as task:
        (shown,) = bars.bars.tasks
        task.skip(60)
        clock.now = 60.0
        task.advance(10)
        assert (shown.completed, shown.fields["left"]) == (70, "3 min left")
