"""The Python side: five lines do what a recipe does, to the byte."""

from __future__ import annotations

import pytest
import torch
from qpass_models.diffusers_model import DiffusersModel
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.quantizers.percentile import Percentile
from qpass_passes.simulate import Simulate

import qpass
from qpass.errors import ModelError, RecipeError
from qpass.sampling import Sampling

RECIPE = """
[model]
use = "diffusers"
path = "{path}"
[sampling]
steps = 4
[calibration]
use = "uniform-steps"
samples = 8
steps = 4
[[passes]]
use = "assign"
weight = "int4 channel"
[[passes]]
use = "simulate"
rows = 16
input = {{use = "percentile", q = 0.999}}
"""


def bytes_of(folder):
    return {f.name: f.read_bytes() for f in sorted((folder / "artifact").iterdir())}


def test_python_and_toml_make_the_same_bytes(unet_folder, tmp_path):
    """Passes composed in Python give the artifact bytes that the same recipe gives as TOML."""
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE.format(path=unet_folder))
    toml = qpass.quantize(None, file, out=tmp_path / "toml")
    python = qpass.quantize(
        DiffusersModel(path=str(unet_folder)),
        [Assign(weight="int4 channel"), Simulate(rows=16, input=Percentile(q=0.999))],
        sampling=Sampling(steps=4),
        calibration=UniformSteps(samples=8, steps=4),
        out=tmp_path / "python",
    )
    assert bytes_of(toml.folder) == bytes_of(python.folder)


def test_a_pipeline_goes_in_and_its_denoiser_is_replaced(unet_folder):
    """quantize(pipe) leaves the pipeline alone; its unet replaced by the result, it draws nearly the same images."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    pipe = DDIMPipeline(UNet2DModel.from_pretrained(unet_folder), DDIMScheduler.from_pretrained(unet_folder))
    pipe.set_progress_bar_config(disable=True)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}

    def draw():
        return pipe(
            batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np"
        ).images

    original = draw()
    small = {"sampling": Sampling(steps=4), "calibration": UniformSteps(samples=8, steps=4)}
    quantized = qpass.quantize(pipe, "w8a8", evaluators=(), **small)
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    pipe.unet = quantized.model
    images = draw()
    assert 0 < abs(images - original).mean() < 0.03


def test_what_no_adapter_knows_is_one_error():
    """A module of an unknown class, or a misspelt zoo name, says what can be given instead."""
    with pytest.raises(ModelError, match="no model adapter knows what to do with a Linear"):
        qpass.quantize(torch.nn.Linear(2, 2))
    with pytest.raises(
        qpass.errors.PluginError, match=r"unknown model 'cifar10-unit', did you mean 'cifar10-unet'"
    ):
        qpass.quantize("cifar10-unit")


def test_a_compiled_denoiser_is_none_to_read(unet_folder):
    """A pipeline whose denoiser is a wrapper gives one error that names the class."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    pipe = DDIMPipeline(UNet2DModel.from_pretrained(unet_folder), DDIMScheduler.from_pretrained(unet_folder))
    pipe.unet = torch.compile(pipe.unet)
    with pytest.raises(ModelError, match=r"module must be one of .*, not OptimizedModule"):
        qpass.quantize(pipe)


def test_a_recipe_without_a_model_takes_the_one_given(unet_folder, tmp_path):
    """Beside a model of its own a file need not name one; changes of the recipe's model have no place there."""
    (tmp_path / "mine.toml").write_text('passes = [{use = "assign", input = "float", edge_input = "float"}]\n')
    model = DiffusersModel(path=str(unet_folder))
    quantized = qpass.quantize(model, tmp_path / "mine.toml")
    assert quantized.report["recipe"]["model"]["use"] == "diffusers"
    with pytest.raises(RecipeError, match=r"--set model\.\* has no place beside a model that is given"):
        qpass.quantize(model, tmp_path / "mine.toml", overrides=["model.use=cifar10-dit"])


def test_a_preset_needs_a_recipe_to_change():
    """Presets and overrides beside passes composed in Python are refused, not ignored."""
    with pytest.raises(RecipeError, match="preset and overrides change a recipe by name or file"):
        qpass.quantize("cifar10-unet", [Assign(), Simulate()], preset="fast")


def test_one_override_as_a_text():
    """It is one override, not one for each letter."""
    with pytest.raises(RecipeError) as caught:
        qpass.quantize("cifar10-unet", "w8a8", overrides="sampling.stesp=3")
    assert len(caught.value.problems) == 1
    assert "did you mean 'steps'" in caught.value.problems[0]


def test_a_quantizers_name_is_no_quantizer():
    """In Python a quantizer is an object; a name in its place is refused when the pass is made."""
    with pytest.raises(TypeError, match="weight must be a quantizer such as Mse"):
        Simulate(weight="absmax")


def test_passes_out_of_order_are_refused_before_any_work():
    """The plan check holds for Python too."""
    with pytest.raises(
        RecipeError, match=r"needs 'specs', which no pass before it provides; put 'assign' before it"
    ):
        qpass.quantize("cifar10-unet", [Simulate(), Assign()])


@pytest.mark.parametrize(
    ("model", "recipe", "rest", "said"),
    [
        (
            "cifar10-unet",
            [Assign()],
            {"seed": 1.5},
            "seed must be a whole number from 0 to 2\\*\\*63 - 1, not 1.5",
        ),
        ("cifar10-unet", Assign(), {}, r"a list of passes, not Assign\("),
        ("diffusers", [Assign()], {}, "option 'path' is required; .*; in Python, give the adapter itself"),
    ],
    ids=["seed", "a pass", "an adapter's options"],
)
def test_what_is_wrong_is_said_before_any_work(model, recipe, rest, said, tmp_path):
    """One error, and no folder."""
    with pytest.raises(RecipeError, match=said):
        qpass.quantize(model, recipe, out=tmp_path / "run", **rest)
    assert not (tmp_path / "run").exists()


def test_a_pipeline_whose_schedule_has_infinite_defaults(unet_folder):
    """DPM-Solver++ clips nothing by default, down to minus infinity; the artifact is written all the same."""
    from diffusers import DDPMPipeline, DPMSolverMultistepScheduler, UNet2DModel

    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear")
    assert scheduler.config.lambda_min_clipped == -float("inf")
    quantized = qpass.quantize(
        DDPMPipeline(UNet2DModel.from_pretrained(unet_folder), scheduler),
        [Assign()],
        sampling=Sampling(scheduler="dpm-solver++", steps=2, batch=2),
        calibration=UniformSteps(samples=2, steps=2),
    )
    kept = quantized.model.about["recipe"]["model"]["scheduler"]
    assert "lambda_min_clipped" not in kept
    assert kept["solver_order"] == scheduler.config.solver_order
