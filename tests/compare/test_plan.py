"""The matrix is read and checked as a whole before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpass.compare.plan import choice, plan
from qpass.errors import RecipeError
from qpass.recipe.structure import to_data


def problems(catalog, *sources, models=(), **rest):
    with pytest.raises(RecipeError) as error:
        plan(sources, models, catalog=catalog, out=Path("out"), **rest)
    return list(error.value.problems)


def test_cells_of_one_model_stand_together(catalog):
    """Recipes in the order given, within models in the order given; each has a folder of its own."""
    cells = plan(["w4a4", "w8a8"], ["cifar10-dit", "cifar10-unet"], catalog=catalog, out=Path("out"))
    assert [cell.title for cell in cells] == [
        "w4a4 on cifar10-dit", "w8a8 on cifar10-dit", "w4a4 on cifar10-unet", "w8a8 on cifar10-unet",
    ]  # fmt: skip
    assert cells[0].folder == Path("out/w4a4-cifar10-dit")
    assert [cell.recipe.model.name for cell in cells] == [cell.model for cell in cells]


def test_models_of_the_recipes_own(catalog, tmp_path):
    """Without --model every recipe keeps its own, and cells of one model still stand together."""
    for name, model in (("a", "cifar10-dit"), ("b", "cifar10-unet"), ("c", "cifar10-dit")):
        (tmp_path / f"{name}.toml").write_text(f'model = "{model}"\npasses = ["assign"]\n')
    cells = plan([str(tmp_path / f"{n}.toml") for n in "abc"], catalog=catalog, out=Path("out"))
    assert [cell.title for cell in cells] == ["a on cifar10-dit", "c on cifar10-dit", "b on cifar10-unet"]


def test_models_of_one_name_that_differ(catalog, tmp_path):
    """Pipelines of the recipes' own are told apart by their folders; what they have alike is not named."""
    for name, model in (("a", "x/one"), ("b", "x/two"), ("c", "x/one")):
        (tmp_path / f"{name}.toml").write_text(
            f'model = {{use = "diffusers", path = "{model}", dtype = "bfloat16"}}\npasses = ["assign"]\n'
        )
    cells = plan([str(tmp_path / f"{n}.toml") for n in "abc"], catalog=catalog, out=Path("out"))
    assert [cell.title for cell in cells] == ["a on diffusers-one", "c on diffusers-one", "b on diffusers-two"]
    assert cells[2].folder == Path("out/b-diffusers-two")


def test_preset_and_changes_reach_every_cell(catalog):
    """Both are in every recipe, and so is the model."""
    cells = plan(
        ["w4a4", "w8a8"], ["cifar10-dit"], catalog=catalog, out=Path("out"), preset="fast", overrides=["seed=7"]
    )
    assert [(cell.recipe.seed, to_data(cell.recipe.calibration)["samples"]) for cell in cells] == [(7, 32)] * 2
    assert [cell.recipe.model.name for cell in cells] == ["cifar10-dit"] * 2


def test_what_is_said_of_one_model(catalog):
    """Guidance for the model that has a condition, beside one that has none; it goes before what is said of all."""
    models = ["cifar10-unet", "cifar10-dit:sampling.guidance=1.5,sampling.steps=10"]
    cells = plan(["w8a8"], models, catalog=catalog, out=Path("out"), overrides=["sampling.steps=5"])
    assert [(cell.recipe.sampling.guidance, cell.recipe.sampling.steps) for cell in cells] == [(1.0, 5), (1.5, 10)]


def test_every_mistake_is_listed_once(catalog):
    """A mistake of one recipe names it, one of all of them does not; no model multiplies them."""
    found = problems(
        catalog, "w4a9", "w8a8", "nowhere/x.toml",
        models=["cifar10-dit", "cifar10-unte", "diffusers:path"], overrides=["seed=-1", "sampling.stesp=3"],
    )  # fmt: skip
    assert found[0] == (
        "--model diffusers:path: 'path' is not KEY=VALUE; write for example diffusers:path=models/mine"
    )
    assert found[1].startswith("w4a9: unknown recipe 'w4a9', did you mean")
    assert "w8a8: sampling: unknown option 'stesp', did you mean 'steps'?" in found
    assert "w8a8: seed must be a whole number from 0 to 2**63 - 1, not -1" in found
    assert any(text.startswith("nowhere/x.toml: no such file") for text in found)
    assert any("unknown model 'cifar10-unte', did you mean 'cifar10-unet'" in text for text in found)
    assert len(found) == 6
    shared = problems(catalog, "w4a4", "w8a8", overrides=["seed=-1"])
    assert shared == ["seed must be a whole number from 0 to 2**63 - 1, not -1"]


def test_two_cells_in_one_folder(catalog, tmp_path):
    """A recipe or model named twice, and two recipe files of one name, are refused with the way out."""
    twice = "2 cells would have the folder 'w4a4-cifar10-unet'; name each recipe, model and seed once"
    assert problems(catalog, "w4a4", "w4a4") == [twice]
    assert problems(catalog, "w4a4", models=["cifar10-unet"] * 2) == [twice]
    (tmp_path / "w4a4.toml").write_text('model = "cifar10-unet"\npasses = ["assign"]\n')
    (found,) = problems(catalog, "w4a4", str(tmp_path / "w4a4.toml"))
    assert found.endswith(f"; rename one of {tmp_path / 'w4a4.toml'}, w4a4")


def test_a_cell_for_each_seed(catalog):
    """All recipes with the first seed come first; a seed named twice, or in two ways, is a mistake."""
    cells = plan(["w4a4", "w8a8"], catalog=catalog, out=Path("out"), seeds=[5, 2])
    assert [(cell.folder.name, cell.recipe.seed) for cell in cells] == [
        ("w4a4-cifar10-unet-seed5", 5), ("w8a8-cifar10-unet-seed5", 5),
        ("w4a4-cifar10-unet-seed2", 2), ("w8a8-cifar10-unet-seed2", 2),
    ]  # fmt: skip
    assert cells[2].title == "w4a4 on cifar10-unet, seed 2"
    assert problems(catalog, "w4a4", seeds=[1, 1]) == [
        "2 cells would have the folder 'w4a4-cifar10-unet-seed1'; name each recipe, model and seed once"
    ]
    assert problems(catalog, "w4a4", seeds=[1], overrides=["seed=2"]) == [
        "--set seed has no place beside --seed; leave one of them out"
    ]
    assert problems(catalog, "w4a4", "w8a8", seeds=[-1]) == [
        "seed must be a whole number from 0 to 2**63 - 1, not -1"
    ]


def test_a_model_named_in_two_ways(catalog):
    """--set model.use beside --model would give a cell another model than its name says."""
    found = problems(catalog, "w4a4", models=["cifar10-dit"], overrides=["model.use=cifar10-unet"])
    assert found == ["w4a4: --set model.use has no place beside --model; leave one of them out"]


@pytest.mark.parametrize(
    ("text", "label", "overrides"),
    [
        ("cifar10-dit", "cifar10-dit", ["model.use=cifar10-dit"]),
        ("diffusers:path=a/b", "diffusers-b", ["model.use=diffusers", "model.path=a/b"]),
        ("x:v=[1,2],s.t=q r", "x-_1_2_-q_r", ["model.use=x", "model.v=[1,2]", "model.s.t=q r"]),
    ],
)  # fmt: skip
def test_models_with_options(text, label, overrides):
    """Options follow a colon, with commas between them; a comma may also be part of a value."""
    assert (choice(text).label, list(choice(text).overrides)) == (label, overrides)


def test_models_of_one_folder_name(catalog, tmp_path):
    """Two paths that end alike are two models: each label takes in as much of its path as tells them apart."""
    models = [tmp_path / name / "unet" for name in ("a/x", "b/x", "c")]
    texts = [f"diffusers:path={path}" for path in models]
    cells = plan(["w8a8"], texts, catalog=catalog, out=Path("out"))
    assert [cell.model for cell in cells] == ["diffusers-a_x_unet", "diffusers-b_x_unet", "diffusers-c_unet"]
    assert [to_data(cell.recipe.model)["path"] for cell in cells] == [str(path) for path in models]
    assert [cell.folder.name for cell in cells] == [f"w8a8-{cell.model}" for cell in cells]
    (alone,) = plan(["w8a8"], texts[:1], catalog=catalog, out=Path("out"))
    assert alone.model == "diffusers-unet"
    said = "2 cells would have the folder 'w8a8-diffusers-unet'; name each recipe, model and seed once"
    assert problems(catalog, "w8a8", models=texts[:1] * 2) == [said]
