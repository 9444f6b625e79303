"""Runs that share a folder ask the original model once between them, do equal first passes once, and come out as if
they had not.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from qpass.plugins import Catalog
from qpass.progress import LineProgress
from qpass.recipe import read
from qpass.run import run

ONCE = ("trace diffusers", "  calibration set: done", "  images of the original: done")


class Heard(LineProgress):
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), every=1e9)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def times(self, start: str) -> int:
        return sum(line.startswith(start) for line in self.lines)


def carry_out(recipe: Path, known: Catalog, out: Path, shared: Path | None, *overrides: str) -> Heard:
    heard = Heard()
    run(read(recipe, catalog=known, overrides=overrides), catalog=known, out=out, progress=heard, shared=shared)
    return heard


def exact(out: Path) -> dict[str, bytes]:
    """Every byte that equal runs share."""
    files = [out / "report.json", out / "recipe.toml", *sorted((out / "artifact").iterdir())]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


OTHER = "passes.assign.weight=int3 channel"
PATIENT = ("evaluators.latency.batch=2", "evaluators.latency.repeats=1", "evaluators.latency.warmup=0")


@pytest.fixture(scope="module")
def alone(recipe: Path, catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second recipe's run, which shares with none."""
    out = tmp_path_factory.mktemp("alone") / "run"
    heard = carry_out(recipe, catalog, out, None, OTHER)
    assert [heard.times(start) for start in ONCE] == [1, 1, 1]
    return out


def test_the_original_is_asked_once(recipe: Path, catalog: Catalog, alone: Path, tmp_path: Path) -> None:
    """Of two recipes the second traces nothing, samples nothing from the original, and leaves the same bytes."""
    shared = tmp_path / "shared"
    first = carry_out(recipe, catalog, tmp_path / "a", shared)
    second = carry_out(recipe, catalog, tmp_path / "b", shared, OTHER)
    assert [first.times(start) for start in ONCE] == [1, 1, 1]
    assert [second.times(start) for start in ONCE] == [0, 0, 0]
    assert second.times("  images of the quantized: done") == 1
    assert exact(tmp_path / "b") == exact(alone)
    assert not list(tmp_path.glob("[ab]/stages/observations/*-original*"))


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ("seed=4", [0, 1, 1]),
        ("sampling.steps=3", [0, 1, 1]),
        ("model.dtype=bfloat16", [1, 1, 1]),
        ("evaluators.drift.samples=3", [0, 0, 1]),
    ],
)
def test_what_differs_is_not_shared(
    recipe: Path, catalog: Catalog, tmp_path: Path, change: str, asked: list[int]
) -> None:
    """Another seed, sampling, model or evaluator takes nothing that is not its own; the bytes are those of one run."""
    carry_out(recipe, catalog, tmp_path / "a", tmp_path / "shared")
    heard = carry_out(recipe, catalog, tmp_path / "b", tmp_path / "shared", change)
    assert [heard.times(start) for start in ONCE] == asked
    passes_too = change.startswith("evaluators")
    assert heard.times("1. assign: kept from") == heard.times("2. simulate: kept from") == passes_too
    carry_out(recipe, catalog, tmp_path / "alone", None, change)
    assert exact(tmp_path / "b") == exact(tmp_path / "alone")


LATER = "passes.simulate.weight=mse"  # the second pass of two


def test_equal_first_passes_are_done_once(recipe: Path, catalog: Catalog, tmp_path: Path) -> None:
    """The second recipe takes the first pass's result, with what it took, and leaves the bytes of a run of its own."""
    carry_out(recipe, catalog, tmp_path / "a", tmp_path / "shared")
    heard = carry_out(recipe, catalog, tmp_path / "b", tmp_path / "shared", LATER)
    assert heard.times(f"1. assign: kept from {str(tmp_path / 'a')!r}") == 1
    assert heard.times("2. simulate: kept") == 0
    carry_out(recipe, catalog, tmp_path / "alone", None, LATER)
    assert exact(tmp_path / "b") == exact(tmp_path / "alone")
    first, second = (json.loads((tmp_path / name / "timings.json").read_text()) for name in "ab")
    assert second["passes"][0] == first["passes"][0]
    assert second["passes"][1]["seconds"] != first["passes"][1]["seconds"]
    # again, after the one that did it is gone: its own result stands, and needs nothing else
    shutil.rmtree(tmp_path / "a")
    heard = carry_out(recipe, catalog, tmp_path / "b", tmp_path / "shared", LATER)
    assert heard.times("2. simulate: kept from an earlier run") == 1


def test_the_peak_of_who_did_a_pass_counts(recipe: Path, catalog: Catalog, tmp_path: Path) -> None:
    """A result taken from a process that had used a terabyte; nothing of it where no result is taken."""
    carry_out(recipe, catalog, tmp_path / "a", tmp_path / "shared")
    (file,) = (tmp_path / "a" / "stages").glob("01-assign.costs.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peak_memory_mb": 1e6}))
    for name, change, counts in (("b", LATER, True), ("c", OTHER, False)):
        carry_out(recipe, catalog, tmp_path / name, tmp_path / "shared", change)
        peak = json.loads((tmp_path / name / "timings.json").read_text())["peak_memory_mb"]
        assert (peak == 1e6) is counts


def test_damage_is_redone(recipe: Path, catalog: Catalog, alone: Path, tmp_path: Path) -> None:
    """With every file of the shared folder and of the first run cut in half, the next run makes what it needs anew."""
    carry_out(recipe, catalog, tmp_path / "a", tmp_path / "shared", OTHER)
    for file in [*(tmp_path / "shared").rglob("*"), *(tmp_path / "a").glob("stages/*/*")]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    heard = carry_out(recipe, catalog, tmp_path / "b", tmp_path / "shared", OTHER)
    assert [heard.times(start) for start in ONCE] == [1, 1, 1]
    assert heard.times("1. assign: kept") == heard.times("2. simulate: kept") == 0
    assert exact(tmp_path / "b") == exact(alone)


def test_times_are_not_shared(recipe: Path, catalog: Catalog, tmp_path: Path) -> None:
    """How long the original took is measured in every run, beside its own quantized model."""
    carry_out(recipe, catalog, tmp_path / "a", tmp_path / "shared", *PATIENT)
    kept = {file.name.split("-")[0] for file in (tmp_path / "shared" / "observations").iterdir()}
    assert kept == {"drift", "size", "cost"}
    assert (tmp_path / "a" / "stages" / "observations" / "latency-original").is_dir()
