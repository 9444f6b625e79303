"""`qpass show` tells everything about one name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import attrs
import pytest

import qpass.recipe
from qpass.cli import main
from qpass.cli.describe import options
from qpass.cli.show import find, render
from qpass.plugins import catalog
from qpass.recipe.structure import to_data
from qpass.sampling import Sampling


def test_every_option_with_type_default_meaning_and_values(
    plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON holds a pass's docstring, facts and options, in the order of its fields."""
    assert main(["show", "nudge", "--json", "--plugin", str(plugin)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["kind"], entry["name"], entry["package"]) == ("pass", "nudge", str(plugin))
    assert entry["doc"].endswith("And a second paragraph.")
    assert entry["facts"]["needs"] == ["specs"]
    assert entry["facts"]["provides"] == ["nudged"]
    rows = [[o[k] for k in ("name", "type", "default", "help", "valid", "required")] for o in entry["options"]]
    assert rows == [
        ["target", "str", None, "which nodes", "", True],
        ["amount", "float", "0.5", "how far", "at least 0.0, below 1.0", False],
        ["how", "str", '"up"', "", '"up" or "down"', False],
        ["layers", "tuple[str, ...]", "[]", "", "", False],
        ["cap", "int", "not set", "", "", False],
    ]


def test_text_says_the_same(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page shows how a recipe uses the pass, what it needs, and which option must be given."""
    assert main(["show", "nudge", "--plugin", str(plugin)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f'pass nudge [{plugin}]\n  [[passes]] use = "nudge"\n')
    assert "needs      specs\n" in text
    assert "target: str  " in text
    assert "which nodes; must be given\n" in text
    assert "how far; at least 0.0, below 1.0\n" in text


def test_sampling_shows_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    """`show sampling` has each option of the section, with its default."""
    assert main(["show", "sampling", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    shown = {o["name"]: json.loads(o["default"]) for o in entry["options"]}
    assert shown == to_data(Sampling())


def test_all_kinds_of_one_name_are_shown(tmp_path: Path, plugin: Path) -> None:
    """A pass called `sampling` is shown beside the section of that name."""
    file = tmp_path / "sampling_plugin.py"
    file.write_text(plugin.read_text().replace('name = "nudge"', 'name = "sampling"'))
    assert [entry["kind"] for entry in find("sampling", (file,))] == ["pass", "section"]


def test_a_recipe_is_spelt_out(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe's page is TOML; its comments are the description and the presets that were not applied."""

    class Resolved:
        notes = ("simulate was appended",)

        def toml(self) -> str:
            return "seed = 1\nmemory_budget = '4GB'\n"

    monkeypatch.setattr(qpass.recipe, "read", lambda source, *, catalog, preset, overrides: Resolved())
    file = shelf / "gentle.toml"
    file.write_text(file.read_text() + "[presets.fast]\nseed = 2\n")
    (by_name,) = find("gentle", (), shelf=shelf)
    (by_path,) = find(str(file), ())
    assert by_name == by_path
    page = render(by_name)
    assert tomllib.loads(page) == {"seed": 1, "memory_budget": "4GB"}
    comments = [line for line in page.splitlines() if line.startswith("#")]
    assert comments == [
        "# Eight bits everywhere. It loses little.",
        f"# recipe gentle: {file}",
        "# simulate was appended",
        "# presets, not applied here: fast",
    ]


@pytest.mark.parametrize("name", sorted(qpass.recipe.shipped()))
def test_what_is_shown_can_be_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`qpass show NAME > mine.toml` gives a file that means the same recipe."""
    assert main(["show", name]) == 0
    mine = tmp_path / "mine.toml"
    mine.write_text(capsys.readouterr().out)
    found = catalog()
    shown, original = (qpass.recipe.read(source, catalog=found) for source in (mine, name))
    assert shown.data() == original.data()


def test_a_recipe_at_other_bits_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Under the name it was asked by, saying what it is made from."""
    assert main(["show", "brecq-w3a6"]) == 0
    text = capsys.readouterr().out
    assert "recipe brecq-w3a6" in text
    assert "# brecq-w4a8 with weights of 3 and inputs of 6 bits" in text
    assert text.startswith("# BRECQ (2102.05426): 3-bit weights, 6-bit activations; ")
    assert tomllib.loads(text)["passes"][0]["weight"] == "int3 channel"


def test_a_preset_and_changes_are_applied(capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown is what `qpass run` with the same options carries out; no pass can be changed so."""
    changes = ["--preset", "fast", "--set", "passes.*.batch=3"]
    assert main(["show", "brecq-w4a8", *changes]) == 0
    text = capsys.readouterr().out
    assert "# with the preset fast\n" in text
    assert "not applied" not in text
    known = catalog()
    expected = qpass.recipe.read("brecq-w4a8", catalog=known, preset="fast", overrides=["passes.*.batch=3"])
    assert qpass.recipe.from_data(tomllib.loads(text), catalog=known).data() == expected.data()
    assert [step.get("batch") for step in tomllib.loads(text)["passes"]] == [None, 3, 3, None]
    assert main(["show", "brecq", *changes]) == 2
    assert "'brecq' is a pass, and --preset and --set change recipes" in capsys.readouterr().err


def test_a_recipe_with_mistakes_is_an_error(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Showing a recipe checks it."""
    (shelf / "wrong.toml").write_text('[model]\nuse = "no-such-model"\n')
    assert main(["show", str(shelf / "wrong.toml")]) == 2
    assert "unknown model 'no-such-model'" in capsys.readouterr().err


def test_an_unknown_name_gives_the_nearest(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typo is answered with the name that was meant, whatever its kind."""
    assert main(["show", "nugde", "--plugin", str(plugin)]) == 2
    assert capsys.readouterr().err == "error: nothing is named 'nugde', did you mean 'nudge'?\n"


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path of a recipe that is not there is an error, not a search for a plugin."""
    assert main(["show", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: no such file" in capsys.readouterr().err


def test_annotations_that_cannot_be_resolved_are_shown_as_text() -> None:
    """An option whose type is imported for type checkers alone still has its type shown."""

    @attrs.frozen(kw_only=True)
    class Option:
        where: pathlib.Path | None = None  # type: ignore[name-defined]  # noqa: F821

    assert [(o.type, o.default) for o in options(Option)] == [("Path", "not set")]


def test_options_that_are_no_arguments_are_left_out() -> None:
    """A field the class fills in itself is no option."""

    @attrs.frozen(kw_only=True)
    class Counter:
        start: int = 0
        private: int = attrs.field(init=False, default=0)

    assert [o.name for o in options(Counter)] == ["start"]
