"""`qpass sample` of a finished run: what it needs of all that made it, and what it says where that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from qpass_passes.calibration.uniform_steps import UniformSteps

import qpass
from qpass.cli import main
from qpass.cli.new import files
from qpass.sampling import Sampling

RECIPE = """
[model]
{model}
[sampling]
steps = 2
batch = 2
[calibration]
use = "uniform-steps"
samples = 2
steps = 2
[[passes]]
use = "{pass_}"
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """What `qpass new pass mine` and `qpass new model net` write, as two plugin files in one folder."""
    for kind, name in (("pass", "mine"), ("model", "net")):
        (tmp_path / f"{name}.py").write_text(files(kind, name)[f"qpass_{name}.py"])
    return tmp_path


def made(plugin: Path, model: str, pass_: str, *args: str) -> Path:
    """A run's folder."""
    (plugin / "r.toml").write_text(RECIPE.format(model=model, pass_=pass_))
    assert main(["run", str(plugin / "r.toml"), "--out", str(plugin / "run"), *args]) == 0
    return plugin / "run"


def test_a_pass_of_a_plugin_is_not_needed(plugin: Path, unet_folder: Path) -> None:
    """Its work is in the graph: the images are the same with its file and without, and its name is written down."""
    given = ["--plugin", str(plugin / "mine.py")]
    run = made(plugin, f'use = "diffusers"\npath = "{unet_folder}"', "mine", *given)
    for name, args in (("with", given), ("without", [])):
        assert main(["sample", str(run), "--count", "2", "--out", str(plugin / name), *args]) == 0
    images = [[file.read_bytes() for file in sorted((plugin / n).glob("*.png"))] for n in ("with", "without")]
    assert len(images[0]) == 2
    assert images[0] == images[1]
    assert json.loads((plugin / "without" / "sampling.json").read_text())["passes"] == ["mine"]


def test_a_model_of_a_plugin_is_needed(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise schedule and decoder are its own: the error says how to give it."""
    given = ["--plugin", str(plugin / "net.py")]
    run = made(plugin, 'use = "net"', "assign", *given)
    args = ["sample", str(run), "--count", "1", "--out", str(plugin / "x.png")]
    assert main([*args, *given]) == 0
    capsys.readouterr()
    assert main(args) == 2
    error = capsys.readouterr().err
    assert "is of the model 'net', which nothing here brings; install its plugin, or give" in error
    assert error.rstrip().endswith("with --plugin")


def test_a_model_that_was_in_memory(unet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No recipe can name it again: the error says what to do instead."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    pipe = DDIMPipeline(UNet2DModel.from_pretrained(unet_folder), DDIMScheduler.from_pretrained(unet_folder))
    small = {"sampling": Sampling(steps=2), "calibration": UniformSteps(samples=2, steps=2)}
    qpass.quantize(pipe, [], out=tmp_path / "run", **small)
    assert main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert "was made in Python, of a model in memory" in error
    assert f"`pipe.unet = qpass.load({str(tmp_path / 'run')!r})` draws with it" in error
