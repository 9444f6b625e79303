"""What an evaluator reads from disk is part of what it depends on, not the name of it alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qpass_evaluators.fd import Fd
from qpass_evaluators.fid import Fid
from qpass_evaluators.kid import Kid
from qpass_evaluators.precision_recall import PrecisionRecall
from qpass_evaluators.sfid import Sfid

from qpass.cli import main
from qpass.images import open_images
from qpass.measuring import Bench
from qpass.run.fingerprint import digest

Photos = Callable[..., Path]
RECIPE = """
[model]
use = "diffusers"
path = {model!r}
[sampling]
steps = 2
[[passes]]
use = "assign"
weight = "int4 channel"
input = "float"
edge_input = "float"
[[passes]]
use = "simulate"
weight = "absmax"
[[evaluators]]
use = "fid"
samples = 4
against = {against!r}
"""


@pytest.mark.parametrize("cls", [Fid, Sfid, Kid, PrecisionRecall])
def test_images(thumbnail: list[int], photos: Photos, cls: Any) -> None:
    """Other images in the same file are told apart, without reading any."""
    evaluator = cls(against=str(photos("theirs", 8)))
    before = evaluator.fingerprint()
    assert evaluator.fingerprint() == before
    photos("theirs", 9)
    assert evaluator.fingerprint() != before
    assert not thumbnail


def test_a_reference(thumbnail: list[int], photos: Photos, tmp_path: Path) -> None:
    """One made of other images is another; one made again of the same is not."""
    file = tmp_path / "reference.safetensors"
    evaluator = Fid(against=str(file))

    def made(count: int) -> str:
        about = {"name": "mine", "command": "qpass reference"}
        images = open_images(str(photos("theirs", count)))
        file.write_bytes(evaluator.reference(images, Bench(folder=tmp_path), about))
        return evaluator.fingerprint()

    assert made(8) == made(8) != made(9)


@pytest.mark.parametrize("cls", [Fid, Fd])
def test_weights(photos: Photos, tmp_path: Path, cls: Any) -> None:
    """Other bytes in a file of weights are told apart."""
    weights = tmp_path / "weights.safetensors"
    evaluator = cls(against=str(photos("theirs", 8)), weights=str(weights))
    weights.write_bytes(b"one")
    before = evaluator.fingerprint()
    weights.write_bytes(b"another")
    assert evaluator.fingerprint() != before


def test_a_run_measures_again(
    thumbnail: list[int], photos: Photos, unet_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With other images in the file the change is named, and the figures are those of a fresh folder."""
    recipe, out = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(model=str(unet_folder), against=str(photos("theirs", 8))))
    command = ["run", str(recipe), "--out"]
    assert main([*command, str(out)]) == 0
    old = fid(out)
    photos("theirs", 9)
    assert main([*command, str(out)]) == 0
    said = capfd.readouterr().err
    assert f"changed since the last run in {out}: evaluators.fid (its files); redoing" in said
    assert "2. simulate: kept from an earlier run" in said
    assert main([*command, str(tmp_path / "fresh")]) == 0
    assert fid(out) == fid(tmp_path / "fresh") != old
    del thumbnail[:]
    assert main([*command, str(out)]) == 0
    assert not thumbnail  # nothing changed, so nothing was looked at
    assert "changed since" not in capfd.readouterr().err


def fid(out: Path) -> str:
    """A hash of the run's metrics."""
    return digest(json.loads((out / "report.json").read_text())["metrics"])
