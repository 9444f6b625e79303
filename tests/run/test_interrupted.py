"""What an interrupted run leaves behind says nothing that is no longer true."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qpass.cli import main

Command = Callable[..., int]
REPORT = {"report.json", "report.html", "timings.json"}
PLUGIN = '''
from pathlib import Path
import attrs, qpass

def interrupted(here):
    """Once, where a file says so."""
    file = Path(__file__).with_name(here)
    if file.exists():
        file.unlink()
        raise RuntimeError("the power went")

@attrs.frozen(kw_only=True)
class Long(qpass.Pass):
    """Keeps the first half of its work, as passes that learn do."""

    name = "long"

    def run(self, graph, ctx):
        half = ctx.scratch / "half"
        half.touch()
        interrupted("in the pass")
        return qpass.PassResult(graph=graph, changed=False)

@attrs.frozen(kw_only=True)
class Look(qpass.Evaluator):
    """One."""

    name = "look"

    def observe(self, subject, ctx):
        interrupted("in the evaluator")
        return qpass.Observation(numbers={"one": 1.0})

    def score(self, candidate, reference):
        return [qpass.Metric(name="one", value=candidate.numbers["one"])]

@qpass.hookimpl
def register_passes():
    return [Long]

@qpass.hookimpl
def register_evaluators():
    return [Look]
'''


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Command:
    """`run(out, *options)`, interrupted where there is a file that is called "in the pass" or "in the evaluator"."""
    (tmp_path / "power.py").write_text(PLUGIN)
    text = recipe.read_text()
    own = text[: text.index("[[evaluators]]")].replace(
        '[[passes]]\nuse = "simulate"', '[[passes]]\nuse = "long"\n[[passes]]\nuse = "simulate"'
    )
    (tmp_path / "own.toml").write_text(own + '[[evaluators]]\nuse = "look"\n')

    def command(out: Path, *options: str) -> int:
        plugin = ["--plugin", str(tmp_path / "power.py")]
        return main(["run", str(tmp_path / "own.toml"), *plugin, "--out", str(out), *options])

    return command


def passes(out: Path) -> list[dict[str, Any]]:
    """What timings.json says of each."""
    found: list[dict[str, Any]] = json.loads((out / "timings.json").read_text())["passes"]
    return found


def test_no_report_beside_an_artifact_of_another_recipe(run: Command, tmp_path: Path) -> None:
    """Once the recipe has changed, the old report is gone, until there is one of the new artifact."""
    out = tmp_path / "run"
    assert run(out) == 0
    assert {file.name for file in out.iterdir()} >= REPORT
    artifact = (out / "artifact" / "qpass.json").read_bytes()
    (tmp_path / "in the evaluator").touch()
    assert run(out, "--set", "passes.assign.weight=int2 channel") == 1
    assert (out / "artifact" / "qpass.json").read_bytes() != artifact
    assert not {file.name for file in out.iterdir()} & REPORT
    assert run(out, "--set", "passes.assign.weight=int2 channel") == 0
    assert {file.name for file in out.iterdir()} >= REPORT


def test_an_interruption_alone_takes_no_report(run: Command, tmp_path: Path) -> None:
    """Where nothing has changed, the report is of the artifact that is there, and stays."""
    out = tmp_path / "run"
    assert run(out) == 0
    report = (out / "report.json").read_bytes()
    (tmp_path / "in the evaluator").touch()
    (out / "stages" / "observations" / "look-original" / "observation.json").unlink()
    assert run(out) == 1
    assert (out / "report.json").read_bytes() == report


def test_a_pass_that_was_begun_before(run: Command, tmp_path: Path) -> None:
    """Its time is that of the process that finished it, and timings.json and report.html say so, later ones too."""
    out = tmp_path / "run"
    (tmp_path / "in the pass").touch()
    assert run(out) == 1
    for _ in range(2):
        assert run(out) == 0
        assert [(row["pass"], row["resumed"]) for row in passes(out)] == [
            ("assign", False), ("long", True), ("simulate", False),
        ]  # fmt: skip
        assert (out / "report.html").read_text().count("since it was begun again") == 1
    assert run(tmp_path / "whole") == 0
    assert not any(row["resumed"] for row in passes(tmp_path / "whole"))
    assert "since it was begun again" not in (tmp_path / "whole" / "report.html").read_text()
    assert (out / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()
