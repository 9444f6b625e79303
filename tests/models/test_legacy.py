"""DiT and PixArt as older diffusers saved them, and as their official folders are: as a Transformer2DModel."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers.models.model_loading_utils import _CLASS_REMAPPING_DICT
from qpass_models.diffusers_model import DiffusersModel
from qpass_models.legacy import BY_NORM, LEGACY

from qpass.errors import ModelError
from qpass.sampling import Sampling

# what the old class took and the new ones do not, as the official folders still list it
OLD = {"attention_type": "default", "num_vector_embeds": None, "only_cross_attention": False,
       "use_linear_projection": False, "double_self_attention": False}  # fmt: skip


def rewrite(file, **changes):
    """Change keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def old(pipeline_folder, tmp_path):
    """`old(name)`: the same pipeline with the old class's name in both files."""

    def make(name):
        folder = tmp_path / name
        shutil.copytree(pipeline_folder(name), folder)
        rewrite(folder / "transformer" / "config.json", _class_name=LEGACY, **OLD)
        rewrite(folder / "model_index.json", transformer=["diffusers", LEGACY])
        return folder

    return make


def draw(adapter, sampling):
    """Images by the eager model in our loop."""
    module = adapter.load()
    with torch.no_grad():
        return next(
            adapter.sample(
                lambda *inputs: adapter.call(module, *inputs),
                seed=0, count=2, sampling=sampling, device=torch.device("cpu"),
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("dit", Sampling(steps=2, guidance=1.5, batch=2)),
        ("pixart", Sampling(scheduler="dpm-solver++", steps=2, guidance=3.0, prompts=("a red cat",), batch=2)),
    ],
)
def test_an_old_folder_is_todays(name, sampling, old, pipeline_folder):
    """The same class, configuration, weights, output and images as of the folder it was made of."""
    if name == "pixart":
        pytest.importorskip("transformers")
    ours, today = DiffusersModel(path=str(old(name))), DiffusersModel(path=str(pipeline_folder(name)))
    assert ours.class_name == today.class_name
    assert ours.config() == today.config()
    assert ours.signature() == today.signature()
    assert type(ours.skeleton()) is type(ours.load()) is type(today.load())
    inputs = today.example()
    with torch.no_grad():
        assert torch.equal(ours.call(ours.load(), *inputs), today.call(today.load(), *inputs))
    assert torch.equal(draw(ours, sampling), draw(today, sampling))


def test_the_table_is_that_of_diffusers():
    """By which norm the class is chosen."""
    assert _CLASS_REMAPPING_DICT[LEGACY] == BY_NORM


def test_another_norm_is_refused(old):
    """The old class also was a text-to-image transformer of its own, which nobody can call."""
    folder = old("dit")
    rewrite(folder / "transformer" / "config.json", norm_type="layer_norm")
    with pytest.raises(ModelError, match="Transformer2DModel with norm_type 'layer_norm', which is neither a DiT"):
        DiffusersModel(path=str(folder)).load()
