"""`qpass list` names what is installed, whose it is, and what is broken."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qpass.cli import main
from qpass.cli.list import on_shelf


def test_a_plugin_file_is_listed(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pass from a file given with --plugin has its name, its first sentence, and the file it is from."""
    assert main(["list", "passes", "--json", "--plugin", str(plugin)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "passes"
    (nudge,) = [item for item in answer["items"] if item["name"] == "nudge"]
    assert nudge == {
        "name": "nudge",
        "summary": "Nudges weights, i.e. It does nothing.",
        "package": str(plugin),
    }


def test_text_is_one_line_each_where_no_one_watches(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into a pipe, a name and its sentence stand on one line, however long."""
    assert main(["list", "passes", "--plugin", str(plugin)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nudge ")]
    assert line.split(maxsplit=1)[1] == f"Nudges weights, i.e. It does nothing. [{plugin}]"


def test_broken_plugins_are_listed_with_their_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed plugin that cannot be imported is listed as broken; the command still succeeds."""
    lost = EntryPoint(name="lost", value="qpass_no_such_module", group="qpass")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [lost])
    assert main(["list", "evaluators", "--json"]) == 0
    (broken,) = json.loads(capsys.readouterr().out)["broken"]
    assert broken == {
        "plugin": "lost (qpass_no_such_module)",
        "reason": "ModuleNotFoundError: No module named 'qpass_no_such_module'",
    }
    assert main(["list", "evaluators"]) == 0
    text = capsys.readouterr().out
    assert "no evaluators are installed" in text
    assert "Broken plugins:" in text
    assert "No module named 'qpass_no_such_module'" in text


def test_a_recipe_is_described_by_its_opening_comment(shelf: Path) -> None:
    """The comment's first sentence is the summary; without one there is none; what is not TOML is broken."""
    items, broken = on_shelf(shelf)
    assert [(item["name"], item["summary"], item["description"]) for item in items] == [
        ("bare", "", ""),
        ("gentle", "Eight bits everywhere.", "Eight bits everywhere. It loses little."),
    ]
    assert [(b.plugin, b.reason.split(":")[0]) for b in broken] == [("torn.toml", "not a TOML file")]


def test_recipes_that_ship_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    """None of them is broken, and each is described."""
    assert main(["list", "recipes", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["broken"] == []
    assert [item["name"] for item in answer["items"] if not item["summary"]] == []
