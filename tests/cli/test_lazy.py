"""What must be quick is quick because it imports nothing slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fresh import HEAVY, NEVER_FOR_LOOKING, processor_seconds, qpass
from qpass.cli import COMMANDS

QUICK = [["--help"], ["--version"], [], ["list", "recipes"], *([name, "--help"] for name in COMMANDS)]
LOOKING = [["list", kind] for kind in ("passes", "models", "evaluators", "quantizers", "analyses")]


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
