"""calibration.json says what a run was calibrated on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from qpass_passes.calibration.uniform_steps import UniformSteps
from safetensors.torch import load_file

from qpass.activations import Samples
from qpass.run.manifest import manifest

SETS = {
    "uniform-steps": ("calibration.steps=2",),
    "every-step": ("calibration.interval=2",),
    "normal-steps": ("calibration.mean=0.3",),
    "density-diversity": ("calibration.radius=0.5", "calibration.probe=2"),
}


def read(folder: Path):
    return json.loads((folder / "calibration.json").read_text())


def options(name, *more):
    """The command line that takes a set with eight images or rows, on a model of other options."""
    given = ("calibration.samples=8", *SETS[name], "passes.assign.input=int8 tensor", *more)
    return [part for text in (f"calibration.use={name}", *given) for part in ("--set", text)]


@pytest.mark.parametrize("name", SETS)
def test_it_is_of_the_rows_that_are_kept(name, run, tmp_path):
    """Name, options, seed, and rows at each timestep, of the tensors that lie in the run's folder."""
    assert run(tmp_path / "one", *options(name)) == 0
    told = read(tmp_path / "one")
    assert told["name"] == name
    assert told["options"]["samples"] == 8
    assert told["seed"] == 3
    (file,) = (tmp_path / "one" / "stages" / "analyses").glob(f"{name}-*.safetensors")
    kept = load_file(file)
    x, t = kept["input0"], kept["input1"]
    assert told["rows"] == len(x) == sum(told["timesteps"].values())
    assert told["timesteps"] == {str(key): count for key, count in Counter(t.tolist()).items()}
    assert told["inputs"][0] == {"shape": list(x.shape), "dtype": "float32", "rows": True}

    assert run(tmp_path / "two", *options(name)) == 0
    assert (tmp_path / "two" / "calibration.json").read_bytes() == (
        tmp_path / "one" / "calibration.json"
    ).read_bytes()
    assert run(tmp_path / "three", *options(name, "seed=4")) == 0
    assert read(tmp_path / "three")["sha256"] != told["sha256"]


def test_it_follows_the_recipe(run, tmp_path):
    """Resumed it stays; with another set it is of that; with the first again, which is still there, of that."""
    assert run(tmp_path / "r", *options("uniform-steps")) == 0
    first = read(tmp_path / "r")
    assert run(tmp_path / "r", *options("uniform-steps")) == 0
    assert read(tmp_path / "r") == first
    assert run(tmp_path / "r", *options("every-step")) == 0
    assert read(tmp_path / "r")["name"] == "every-step"
    assert run(tmp_path / "r", *options("uniform-steps")) == 0
    assert read(tmp_path / "r") == first


def test_it_comes_with_the_stages_that_are_kept(run, tmp_path):
    """Another evaluator redoes no pass, so nobody asks for the set; what it was is said all the same."""
    assert run(tmp_path / "r", *options("uniform-steps")) == 0
    first = read(tmp_path / "r")
    assert run(tmp_path / "r", *options("uniform-steps", "evaluators.drift.rows=3")) == 0
    assert read(tmp_path / "r") == first
    (tmp_path / "r" / "calibration.json").unlink()
    assert run(tmp_path / "r", *options("uniform-steps")) == 0
    assert read(tmp_path / "r") == first


def test_a_run_that_asks_for_no_set_has_none(run, tmp_path):
    """Weights alone need no calibration: neither a new manifest nor that of an earlier recipe in the folder."""
    weights = ("passes.assign.input=float", "passes.assign.edge_input=float")
    alone = [part for text in (*weights, "seed=9", "calibration.samples=3") for part in ("--set", text)]
    assert run(tmp_path / "r", *options("uniform-steps")) == 0
    assert (tmp_path / "r" / "calibration.json").exists()
    assert run(tmp_path / "r", *alone) == 0
    assert not (tmp_path / "r" / "calibration.json").exists()


def test_the_hash_is_of_every_input():
    """Type, shape and bytes of each, in order; a change of any changes it."""
    x, t, fixed = torch.arange(6.0).reshape(2, 3), torch.tensor([5.5, 0.0]), torch.tensor([1, 2, 3])
    samples = Samples(inputs=(x, t, fixed), unbatched=(2,))
    told = manifest(UniformSteps(samples=2), 7, samples)
    total = hashlib.sha256()
    for part, text in ((x, "torch.float32 (2, 3)"), (t, "torch.float32 (2,)"), (fixed, "torch.int64 (3,)")):
        total.update(f"{text}\n".encode() + part.numpy().tobytes())
    assert told["sha256"] == total.hexdigest()
    assert told["timesteps"] == {"0": 1, "5.5": 1}
    assert [entry["rows"] for entry in told["inputs"]] == [True, True, False]
    for place in range(3):
        changed = [part.clone() for part in samples.inputs]
        changed[place].view(-1)[0] += 1
        assert (
            manifest(UniformSteps(), 7, Samples(inputs=tuple(changed), unbatched=(2,)))["sha256"] != told["sha256"]
        )
    half = Samples(inputs=(x.bfloat16(), t, fixed), unbatched=(2,))
    assert manifest(UniformSteps(), 7, half)["inputs"][0]["dtype"] == "bfloat16"
