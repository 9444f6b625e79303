"""The recipes that come with qpass: each checks, reads back, takes any model, and can be had at other bits."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
import pytest

from qpass.errors import RecipeError
from qpass.plugins import Catalog
from qpass.recipe import at_bits, from_data, read, shipped


@pytest.mark.parametrize("name", shipped())
def test_it_checks(known: Catalog, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mistake, and with every preset it has; one of them reads a file of captions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a cat", encoding="utf-8")
    assert read(name, catalog=known).notes == ()
    for preset in tomllib.loads(shipped()[name].read_text()).get("presets", {}):
        read(name, catalog=known, preset=preset)


@pytest.mark.parametrize(
    ("name", "file"),
    [("brecq-w3a6", "brecq-w4a8"), ("w2a2", "w4a4"), ("tfmq-w6a6", "tfmq-w4a8"), ("rtn-w5a8", "rtn-w4a8")],
)
def test_a_method_can_be_had_at_any_bits(known: Catalog, name: str, file: str) -> None:
    """The file of the nearest bits, the bits of weights first, and nothing else changed; it says so."""
    found, other = read(name, catalog=known), read(file, catalog=known)
    weight, given = int(name[-3]), int(name[-1])
    assert found.name == name
    assert found.notes == (f"{file} with weights of {weight} and inputs of {given} bits",)
    step, theirs = found.passes[0], other.passes[0]
    assert (step.weight, step.input) == (f"int{weight} channel", f"int{given} tensor")
    assert attrs.evolve(step, weight=theirs.weight, input=theirs.input) == theirs
    assert found.passes[1:] == other.passes[1:]
    assert found.data() | {"passes": []} == other.data() | {"passes": []}


def test_inputs_with_a_word_of_their_own_go_along(known: Catalog) -> None:
    """Those of linear layers get the bits of the rest; what was set to others on purpose stays."""
    found = read("best-w8a8", catalog=known).passes[0]
    assert (found.input, found.linear_input) == ("int8 tensor time:20", "int8 token dynamic")
    ours = {"use": "assign", "input": "int4 tensor", "linear_input": "int4 token", "attention": "int8 tensor"}
    step = at_bits({"passes": [ours]}, 6, 5)["passes"][0]
    assert step == ours | {"input": "int5 tensor", "linear_input": "int5 token"}


@pytest.mark.parametrize("name", ["brecq-w1a8", "brecq-w9a8", "nothing-w4a8", "brecq", "-w3a3", "w4a4-w3a3"])
def test_other_names_are_unknown(known: Catalog, name: str) -> None:
    """Bits from 2 to 8, of a method that ships."""
    with pytest.raises(RecipeError, match="unknown recipe"):
        read(name, catalog=known)


@pytest.mark.parametrize("name", shipped())
def test_it_takes_another_model(known: Catalog, name: str) -> None:
    """Nothing in it is for one model only."""
    assert read(name, catalog=known, overrides=['model.use="cifar10-dit"']).model.name == "cifar10-dit"


@pytest.mark.parametrize("name", shipped())
def test_it_reads_back(known: Catalog, name: str) -> None:
    """What is written into a run's folder is the same recipe."""
    recipe = read(name, catalog=known)
    again = from_data(tomllib.loads(recipe.toml()), catalog=known)
    assert again.data() == recipe.data()
    assert again.passes == recipe.passes
    assert again.toml() == recipe.toml()
