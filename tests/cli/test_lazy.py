"""What must be quick is quick because it imports nothing slow."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qpass.cli.front import COMMANDS

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise AssertionError("imported " + name)

sys.meta_path.insert(0, Blocker())
from qpass.cli import main

sys.exit(main({args!r}))
"""
HEAVY = ("torch", "numpy", "diffusers", "timm", "torchvision", "transformers")
NEVER_FOR_LOOKING = ("diffusers", "timm", "torchvision", "transformers")
QUICK = [["--help"], ["--version"], [], ["list", "recipes"], *([name, "--help"] for name in COMMANDS)]
LOOKING = [["list", kind] for kind in ("passes", "models", "evaluators", "quantizers", "analyses")]


def qpass(*args: str | Path, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run one command line in a fresh interpreter, in which imports of `blocked` fail."""
    code = BLOCKER.format(blocked=blocked, args=[str(a) for a in args])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def processor_seconds(*args: str | Path, attempts: int = 3) -> float:
    """Processor time of one command line, the best of a few: what it costs, however busy the machine is."""
    best = float("inf")
    for _ in range(attempts):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert qpass(*args).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


@pytest.mark.parametrize("args", QUICK, ids=" ".join)
def test_quick_commands_import_nothing_heavy(args: list[str]) -> None:
    """Help, version and recipes are answered where torch, numpy and diffusers cannot be imported."""
    done = qpass(*args, blocked=HEAVY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_new_imports_nothing_heavy(tmp_path: Path) -> None:
    """A plugin package is written where torch, numpy and diffusers cannot be imported."""
    done = qpass("new", "pass", "tiny", "--out", tmp_path / "tiny", blocked=HEAVY)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["list", "recipes"]], ids=" ".join)
def test_quick_commands_take_less_than_half_a_second(args: list[str]) -> None:
    """Processor time stays below 0.5 s."""
    assert processor_seconds(*args) < 0.5


@pytest.mark.parametrize("args", [*LOOKING, ["show", "sampling"]], ids=" ".join)
def test_looking_at_plugins_imports_no_model_library(args: list[str]) -> None:
    """Plugins are listed and shown where diffusers, timm and torchvision cannot be imported; none is broken."""
    done = qpass(*args, "--json", blocked=NEVER_FOR_LOOKING)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert isinstance(answer, list) or answer["broken"] == []


def test_looking_at_plugins_takes_less_than_four_seconds(plugin: Path) -> None:
    """Processor time of showing a pass, which needs torch, stays below 4 s."""
    assert processor_seconds("show", "nudge", "--plugin", plugin) < 4
