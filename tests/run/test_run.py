"""A whole run, from recipe to report."""

from __future__ import annotations

import json

import pytest

from qpass.recipe import from_data
from qpass.run import run


@pytest.fixture
def data(unet_folder):
    """A small recipe on the tiny UNet."""
    return {
        "model": {"use": "diffusers", "path": str(unet_folder)},
        "sampling": {"steps": 4, "batch": 8},
        "calibration": {"use": "uniform-steps", "samples": 8, "steps": 4},
        "passes": [{"use": "assign"}, {"use": "simulate", "rows": 16}],
        "evaluators": [
            {"use": "drift", "samples": 8, "rows": 4},
            {"use": "size"},
            {"use": "cost"},
            {"use": "latency", "repeats": 2},
        ],
    }


def test_leaves_what_the_architecture_promises(data, catalog, tmp_path):
    """The folder holds recipe, stages, artifact, reports and timings; metric names are the fixed ones."""
    result = run(from_data(data, catalog=catalog), catalog=catalog, out=tmp_path / "r")
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "recipe.toml", "stages", "artifact", "calibration.json", "report.json", "report.html", "timings.json"
    }  # fmt: skip
    report = json.loads((result.folder / "report.json").read_text())
    assert {"schema", "recipe", "seed", "versions", "device", "records", "metrics"} <= report.keys()
    assert [record["pass"] for record in report["records"]] == ["assign", "simulate"]
    fixed = {
        "sqnr", "psnr", "ssim", "clipped", "lpips", "packed_mb", "packed_ratio", "bits_per_weight", "integer_share",
        "ms_per_step", "images_per_second", "peak_memory_mb", "macs", "bops", "fid", "sfid", "is", "kid",
        "precision", "recall",
    }  # fmt: skip
    timings = json.loads((result.folder / "timings.json").read_text())
    assert {m["name"] for m in report["metrics"]} <= fixed
    assert {"ms_per_step", "peak_memory_mb"} <= {m["name"] for m in timings["metrics"]} <= fixed
    assert not any(m["name"] in ("ms_per_step", "peak_memory_mb") for m in report["metrics"])


def test_a_bf16_model_runs_like_any_other(data, catalog, tmp_path):
    """With model.dtype = "bfloat16" the run ends, and its 8-bit output is within 20 dB of the bf16 teacher's."""
    data["model"]["dtype"] = "bfloat16"
    data["evaluators"] = data["evaluators"][:1]
    result = run(from_data(data, catalog=catalog), catalog=catalog, out=tmp_path / "r")
    assert {m["name"]: m["value"] for m in result.report["metrics"]}["sqnr"] > 20


def test_a_recipe_without_realisation_is_simulated_and_says_so(data, catalog, tmp_path):
    """A recipe that ends in `assign` gets `simulate` appended; records and notes tell."""
    data["passes"] = data["passes"][:1]
    data["evaluators"] = []
    data["calibration"]["samples"] = 2
    result = run(from_data(data, catalog=catalog), catalog=catalog, out=tmp_path / "r")
    assert [record["pass"] for record in result.report["records"]] == ["assign", "simulate"]
    assert "`simulate` was appended" in result.report["notes"][0]


def test_the_resolved_recipe_runs_to_the_same_artifact(data, catalog, tmp_path):
    """recipe.toml in the folder, run as a recipe of its own, gives the same artifact bytes."""
    from qpass.recipe import read

    data["evaluators"] = []
    first = run(from_data(data, catalog=catalog), catalog=catalog, out=tmp_path / "one")
    second = run(read(first.folder / "recipe.toml", catalog=catalog), catalog=catalog, out=tmp_path / "two")
    for name in ("model.safetensors", "qpass.json"):
        assert (first.folder / "artifact" / name).read_bytes() == (second.folder / "artifact" / name).read_bytes()
