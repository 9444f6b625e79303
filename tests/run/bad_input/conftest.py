"""A model that is quick to trace, copies of it with something changed, and `qpass run` on what is handed over."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qpass.cli import main
from qpass.cli.new import files

sys.path.insert(0, str(Path(__file__).parent))  # for `endings`
from endings import QUANTIZE, RECIPE, WEIGHTS, Folder, Outcome, Run, Tensors, diffusers


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet2DModel that is quick to trace, and its noise schedule."""
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("smallest")
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    ).save_pretrained(folder)
    DDIMScheduler(beta_schedule="linear").save_pretrained(folder)
    return folder


@pytest.fixture
def copy(smallest: Path, tmp_path: Path) -> Folder:
    """That folder, with its configuration or its weights changed."""

    def copy(
        config: Callable[[dict[str, Any]], Any] | None = None, weights: Callable[[Tensors], Any] | None = None
    ) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(smallest, folder)
        if config is not None:
            data = json.loads((folder / "config.json").read_text())
            config(data)
            (folder / "config.json").write_text(json.dumps(data))
        if weights is not None:
            tensors = load_file(folder / WEIGHTS)
            weights(tensors)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return folder

    return copy


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`qpass run` in this process, on a diffusers folder or on the small network of `qpass new model`."""
    net = tmp_path / "net.py"
    net.write_text(files("model", "net")["qpass_net.py"])

    def run(*args: str, model: Path | None = None, rest: str = QUANTIZE, plugin: str | None = None) -> Outcome:
        recipe = tmp_path / "bad.toml"
        recipe.write_text(RECIPE.format(model=diffusers(model) if model else 'use = "net"') + rest)
        if plugin is not None:
            (tmp_path / "strange.py").write_text(plugin)
            args = (*args, "--plugin", str(tmp_path / "strange.py"))
        code = main(["run", str(recipe), "--out", str(tmp_path / "out"), "--plugin", str(net), *args])
        outcome = Outcome(code, capsys.readouterr().err, tmp_path / "out")
        assert "Traceback" not in outcome.err or "--debug" in args
        assert not list(tmp_path.rglob(".tmp-*")), "something was left half-written"
        return outcome

    return run
