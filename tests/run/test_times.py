"""Times are those of this machine: what an earlier run took on another is no answer."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

RECIPE = """
[[evaluators]]
use = "latency"
batch = 1
repeats = 1
warmup = 0
"""


@pytest.fixture
def _threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_threads")
def test_another_machine_is_timed_anew(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command keeps its times; with other threads, or on another host, they are taken again."""
    from qpass.cli import main

    text = recipe.read_text()
    own, out = tmp_path / "own.toml", tmp_path / "run"
    own.write_text(text[: text.index("[[evaluators]]")] + RECIPE)
    kept = out / "stages" / "observations" / "latency-quantized" / "observation.json"

    def looked(change: Callable[[], None] = lambda: None) -> str:
        change()
        assert main(["run", str(own), "--out", str(out)]) == 0
        return kept.read_text()

    first = looked()
    assert looked() == first
    second = looked(lambda: torch.set_num_threads(2))
    assert second != first
    assert {m["protocol"]["threads"] for m in json.loads((out / "timings.json").read_text())["metrics"]} == {2}
    assert looked(lambda: monkeypatch.setattr(platform, "node", lambda: "elsewhere")) != second
