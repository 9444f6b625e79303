"""A run that takes a second: a tiny UNet on disk, a recipe for it, and ways to give the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qpass.cli import main

RECIPE = """
seed = 3
[model]
use = "diffusers"
path = {path!r}
scheduler = {{beta_schedule = "linear"}}
[sampling]
steps = 4
[calibration]
use = "uniform-steps"
samples = 4
steps = 4
[[passes]]
use = "assign"
weight = "int4 group:16"
input = "int8 tensor time:2"
[[passes]]
use = "simulate"
weight = "absmax"
input = "absmax"
rows = 8
[[evaluators]]
use = "drift"
samples = 4
rows = 2
[[evaluators]]
use = "size"
[[evaluators]]
use = "cost"
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file, beside the model it names."""
    from diffusers import UNet2DModel

    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, block_out_channels=(16,), norm_num_groups=8, layers_per_block=1, attention_head_dim=8,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    (folder / "tiny.toml").write_text(RECIPE.format(path=str(folder / "model")))
    return folder / "tiny.toml"


Command = Callable[..., int]


@pytest.fixture
def run(recipe: Path) -> Command:
    """`run(out, *options)`: the exit code of `qpass run` in this process."""

    def command(out: Path, *options: str) -> int:
        return main(["run", str(recipe), "--out", str(out), *options])

    return command
