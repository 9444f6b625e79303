"""Run the command line in an interpreter of its own, in which chosen imports fail."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise AssertionError("imported " + name)

sys.meta_path.insert(0, Blocker())
{code}
"""
CLI = "from qpass.cli import main; sys.exit(main({args!r}))"
HEAVY = ("torch", "numpy", "diffusers", "timm", "torchvision", "transformers")
NEVER_FOR_LOOKING = ("diffusers", "timm", "torchvision", "transformers")


def python(code: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    source = BLOCKER.format(blocked=blocked, code=textwrap.dedent(code))
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)


def qpass(*args: str | Path, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run one command line in a fresh interpreter."""
    return python(CLI.format(args=[str(a) for a in args]), blocked)


def processor_seconds(*args: str | Path, attempts: int = 3) -> float:
    """Processor time of one command line, the best of a few: what it costs, however busy the machine is."""
    best = float("inf")
    for _ in range(attempts):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert qpass(*args).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best
