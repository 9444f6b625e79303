"""What progress says of memory is of this process alone."""

from __future__ import annotations

import subprocess
import sys

from qpass.progress import peak_memory_mb

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
