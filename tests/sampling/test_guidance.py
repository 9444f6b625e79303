"""Guidance that would change nothing is refused: on a model without conditions, and channels where none is guided."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import pytest
import torch
from qpass_models.conditions import Conditioner
from qpass_models.in_memory import InMemory
from qpass_models.zoo import Cifar10DiT, Cifar10UNet

from qpass.cli import main
from qpass.errors import RecipeError
from qpass.model import ModelAdapter
from qpass.recipe import read
from qpass.recipes import shipped
from qpass.run.execute import check
from qpass.sampling import Conditions, Sampler, Sampling, check_guidance

sys.path.insert(0, str(Path(__file__).parent.parent / "graph"))  # the tiny models that tracing is held to
import tiny

SCHEDULE = {"beta_schedule": "linear"}
IDLE = "sampling.guidance: 3.0 would change nothing, as this model has no condition that can be left out"
CHANNELS = "sampling.guidance_channels: 3 would change nothing, as"


class Own(ModelAdapter):
    """An adapter of someone's own: two classes, and one for none where it is asked for."""

    name = "own"
    load = skeleton = example = config = fingerprint = None

    def __init__(self, empty):
        self.empty = empty

    def cannot_sample(self):
        return None

    def sampler(self):
        return Sampler(
            shape=(3, 8, 8), scheduler_config=SCHEDULE, conditions=lambda *_: Conditions(empty=self.empty)
        )


def classes(**config):
    """A UNet2DModel of four classes, which has none for "no class"."""
    import diffusers

    class_name, options = tiny.CONFIGS["unet"]
    return InMemory(module=getattr(diffusers, class_name)(**options, **config), scheduler=SCHEDULE)


@pytest.mark.parametrize(
    "make",
    [Cifar10UNet, lambda: classes(num_class_embeds=4), lambda: Own(None)],
    ids=["unconditional", "classes without none", "a plugin's"],
)
def test_a_model_that_cannot_be_guided(make):
    """Guidance 1 is what it does anyway; any other is one error."""
    make().check_sampling(Sampling())
    with pytest.raises(RecipeError, match=IDLE):
        make().check_sampling(Sampling(guidance=3.0))


@pytest.mark.parametrize("make", [Cifar10DiT, lambda: Own(())], ids=["DiT", "a plugin's"])
def test_a_model_that_can(make):
    """Guidance and its channels are taken; channels without guidance are not."""
    make().check_sampling(Sampling(guidance=3.0, guidance_channels=3))
    with pytest.raises(RecipeError, match=f"{CHANNELS} nothing is guided at guidance 1; leave it out"):
        make().check_sampling(Sampling(guidance_channels=3))


def test_a_text_to_lead_away_from():
    """It is read by guidance alone, and refused where there is none."""
    check_guidance(Sampling(guidance=3.0, negative_prompt="grey"), guided=True)
    for guidance, guided, why in (
        (1.0, True, "nothing is guided at guidance 1"),
        (3.0, False, "not guided by a second"),
    ):
        with pytest.raises(
            RecipeError, match=rf"sampling.negative_prompt: 'grey' would change nothing, as .*{why}"
        ):
            check_guidance(Sampling(guidance=guidance, negative_prompt="grey"), guided=guided, takes_it=True)


def test_guidance_as_an_input():
    """Flux takes guidance as an input and is called once, so no channels are guided; without that input, nothing is."""

    def flux(*inputs):
        return Conditioner(
            inputs=("encoder_hidden_states", "img_ids", *inputs), config={}, dtype=torch.float32, grid=(8, 8),
            pixels=(8, 8), classes=lambda: torch.ones(2, 4),
        )  # fmt: skip

    flux("guidance").check(Sampling(guidance=3.0))
    with pytest.raises(RecipeError, match=f"{CHANNELS} this model is not guided by a second call"):
        flux("guidance").check(Sampling(guidance=3.0, guidance_channels=3))
    with pytest.raises(RecipeError, match=IDLE):
        flux().check(Sampling(guidance=3.0))


def test_sampling_and_running_both_ask(unet_folder, catalog, tmp_path, capsys):
    """`qpass sample` and the check before a run."""
    args = [
        "sample", "diffusers", "--set", f"model.path={unet_folder}", "--set", "sampling.guidance=3",
        "--out", str(tmp_path / "x.png"),
    ]  # fmt: skip
    assert main(args) == 2
    assert IDLE in capsys.readouterr().err
    recipe = read("w8a8", catalog=catalog, overrides=["model.use=diffusers", f"model.path={unet_folder}"])
    check(recipe, catalog)
    with pytest.raises(RecipeError, match=IDLE):
        check(attrs.evolve(recipe, sampling=Sampling(guidance=3.0)), catalog)


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_say_nothing_idle(name, catalog):
    """On their own models, with every preset; those whose model is not here come with guidance above 1 or none."""
    recipe = read(name, catalog=catalog)
    if recipe.model.name == "diffusers":
        assert not recipe.sampling.guidance_channels or recipe.sampling.guidance != 1.0
    else:
        recipe.model.check_sampling(recipe.sampling)
