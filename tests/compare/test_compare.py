"""A comparison carries out its cells one by one, and leaves one document and one table of them all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from shop import ENVIRONMENT, QPASS, Done, Shop, cells

from qpass.report.human import number


def test_every_recipe_on_every_model(done: Done) -> None:
    """Four runs' folders, one cell of the document for each, and their own figures in it."""
    rows = cells(done.out)
    names = [(row["recipe"], row["model"]) for row in rows]
    assert names == [(r, m) for m in ("diffusers-one", "diffusers-two") for r in ("plain", "obeys")]
    assert [row["status"] for row in rows] == ["done"] * 4
    for row in rows:
        report = json.loads((done.out / row["folder"] / "report.json").read_text())
        assert row["metrics"] == report["metrics"]
        assert all(metric["protocol"] for metric in row["metrics"])
        assert 0 < row["seconds"] < row["total_seconds"]
        assert 100 < row["peak_memory_mb"] < 4000
        assert row["resumed"] is False
    assert len({json.dumps(row["metrics"]) for row in rows}) == 4


def test_each_original_is_asked_once(done: Done) -> None:
    """Two models are traced, sampled to calibrate on and drawn from twice, not four times."""
    assert done.stderr.count("trace diffusers") == 2
    assert done.stderr.count("calibration set: done") == 2
    assert done.stderr.count("images of the original: done") == 2
    assert done.stderr.count("images of the quantized: done") == 4


def test_progress(done: Done) -> None:
    """Which cell of how many, and from the second on how long the rest may take."""
    heads = [line for line in done.stderr.splitlines() if line.startswith("cell ")]
    assert heads[0] == "cell 1 of 4: plain on diffusers-one"
    assert heads[3].startswith("cell 4 of 4: obeys on diffusers-two, about ")


def test_tables(done: Done) -> None:
    """Terminal and markdown have a row for each original and each cell, in the order given, with the same figures."""
    lines = (done.out / "compare.md").read_text().splitlines()
    names = [tuple(word.strip() for word in line.split("|")[1:3]) for line in lines[2:8]]
    assert names == [
        (model, recipe)
        for model in ("diffusers-one", "diffusers-two")
        for recipe in ("original", "plain", "obeys")
    ]
    heads = [word.strip() for word in lines[0].split("|")]
    for head in (
        "sqnr (dB)",
        "psnr (dB)",
        "ssim",
        "packed_mb (MB)",
        "packed_ratio",
        "passes",
        "process peak (MB)",
    ):
        assert head in heads
    ratio = [line.split("|")[heads.index("packed_ratio")].strip() for line in lines[2:8]]
    assert ratio[0] == "1"
    assert float(ratio[1]) < float(ratio[2]) < 1
    for text in ratio:
        assert text in done.stdout
    assert done.stdout.endswith(f"table: {done.out / 'compare.md'}\n")


def test_a_cell_is_an_ordinary_run(shop: Shop, done: Done, tmp_path: Path) -> None:
    """`qpass run` of the same recipe, which shares nothing, leaves the same report and artifact to the byte."""
    recipe, plugin = str(shop.folder / "obeys.toml"), str(shop.folder / "obeys.py")
    command = [str(QPASS), "run", recipe, "--plugin", plugin, "--out", str(tmp_path / "run")]
    subprocess.run(
        [*command, "--set", f"model.path={shop.folder / 'two'}"], check=True, capture_output=True, env=ENVIRONMENT
    )
    for name in ("report.json", "recipe.toml", "artifact/qpass.json", "artifact/model.safetensors"):
        cell = done.out / "obeys-diffusers-two" / name
        assert cell.read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_run_for_each_seed(shop: Shop, tmp_path: Path) -> None:
    """Each in its folder, with images of its own; the table has the mean and the deviation of both."""
    out = tmp_path / "seeds"
    command = [*shop.command(out, recipes="plain"), "--seed", "1", "--seed", "2"]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    rows = cells(out)
    assert [(row["seed"], row["folder"]) for row in rows] == [(n, f"plain-diffusers-one-seed{n}") for n in (1, 2)]
    one, two = (next(m["value"] for m in row["metrics"] if m["name"] == "psnr") for row in rows)
    assert one != two
    mean, deviation = (one + two) / 2, abs(one - two) / 2**0.5
    assert f"| {number(mean, 'dB')} ± {number(deviation, 'dB')} |" in (out / "compare.md").read_text()


def test_the_same_again_runs_nothing(shop: Shop, done: Done, tmp_path: Path) -> None:
    """Every cell is kept: no file in a cell is touched, and the document stays the same, seconds and all."""
    out = tmp_path / "both"
    shutil.copytree(done.out, out)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*-*/**/*")}
    again = shop.compare(out, models=2)
    assert again.returncode == 0
    assert again.stderr.count("kept: finished earlier under the same conditions") == 4
    assert "trace" not in again.stderr
    assert {file: file.stat().st_mtime_ns for file in out.glob("*-*/**/*")} == before
    assert cells(out) == cells(done.out)
