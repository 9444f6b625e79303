"""`qpass run` hands its arguments on, and says where the report is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.table import Table

import qpass.recipe
from qpass.cli import main


def table(report: dict[str, Any], timings: dict[str, Any]) -> Table:
    found = Table()
    found.add_column(report["head"])
    found.add_row(timings["cell"])
    return found


def module(name: str, **names: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(names)
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `qpass run` asked of the recipe reader and of the runner."""
    seen: dict[str, Any] = {}

    def read(source: str, **rest: Any) -> str:
        seen["read"] = {"source": source, **rest}
        return "the recipe"

    def run(recipe: str, **rest: Any) -> SimpleNamespace:
        seen["run"] = {"recipe": recipe, **rest}
        return SimpleNamespace(folder=Path("runs/x"), report={"head": "metric"}, timings={"cell": "31.4"})

    monkeypatch.setattr(qpass.recipe, "read", read)
    monkeypatch.setitem(sys.modules, "qpass.run", module("qpass.run", run=run))
    monkeypatch.setitem(sys.modules, "qpass.report", module("qpass.report", __path__=[]))
    monkeypatch.setitem(sys.modules, "qpass.report.terminal", module("qpass.report.terminal", table=table))
    return seen


def failing(error: BaseException) -> Callable[..., Any]:
    def run(*args: Any, **rest: Any) -> Any:
        raise error

    return run


def test_arguments_arrive(calls: dict[str, Any], plugin: Path, tmp_path: Path) -> None:
    """Preset, overrides, folder, device and plugin files reach the functions that use them."""
    recipe = ["w4a4", "--preset", "fast", "--set", "seed=1", "--set", "a.b=c=d"]
    assert main(["run", *recipe, "--out", str(tmp_path), "--device", "cuda:1", "--plugin", str(plugin)]) == 0
    assert calls["read"]["source"] == "w4a4"
    assert calls["read"]["preset"] == "fast"
    assert tuple(calls["read"]["overrides"]) == ("seed=1", "a.b=c=d")
    assert "nudge" in calls["read"]["catalog"].classes["passes"]
    assert calls["run"]["recipe"] == "the recipe"
    assert calls["run"]["catalog"] is calls["read"]["catalog"]
    assert (calls["run"]["out"], calls["run"]["device"]) == (tmp_path, "cuda:1")


def test_defaults(calls: dict[str, Any]) -> None:
    """Without options: no preset, the runner's own folder, the CPU."""
    assert main(["run", "w4a4"]) == 0
    assert (calls["read"]["preset"], calls["run"]["out"], calls["run"]["device"]) == (None, None, "cpu")


def test_the_table_and_the_report_are_printed(calls: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The outcome goes to stdout, and last the path of the report."""
    assert main(["run", "w4a4"]) == 0
    out = capsys.readouterr().out
    assert "31.4" in out
    assert out.endswith("report: runs/x/report.html\n")


def test_an_interrupted_run_says_how_to_go_on(
    calls: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C exits with 130."""
    monkeypatch.setattr(sys.modules["qpass.run"], "run", failing(KeyboardInterrupt()))
    assert main(["run", "w4a4"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command resumes\n")


@pytest.mark.parametrize("change", ["steps", "=3", " =3"])
def test_a_change_that_is_none(change: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--set without KEY or without = is refused before anything is imported, with an example."""
    assert main(["run", "w4a4", "--set", change]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --set: {change!r} is not KEY=VALUE; write for example passes.")


def test_a_device_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """A device torch has no name for is refused with those it has."""
    assert main(["run", "w4a4", "--device", "gpu"]) == 2
    assert capsys.readouterr().err.startswith("error: --device: 'gpu' is not a device; write cpu, cuda or cuda:N")


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """The reader's own error is what is printed."""
    assert main(["run", "no-such-recipe"]) == 2
    assert "unknown recipe 'no-such-recipe'" in capsys.readouterr().err
