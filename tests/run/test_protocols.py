"""The papers' protocols, end to end on tiny folders: quantized, kept, loaded again, and the same images drawn."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qpass_evaluators.drift import Drift
from safetensors.torch import load_file

import qpass
from qpass.cli import main
from qpass.errors import ModelError
from qpass.plugins import Catalog, catalog
from qpass.recipe import read
from qpass.recipe.structure import to_data
from qpass.recipes import shipped
from qpass.run import sample

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
sys.path.insert(0, str(Path(__file__).parent.parent / "graph"))  # the tiny models that tracing is held to
import pipelines

SMALL = (
    "calibration.samples=2", "calibration.steps=2", "passes.simulate.rows=4", "passes.simulate.weight=absmax",
    "passes.simulate.input=absmax", "sampling.batch=2", "evaluators.drift.samples=3", "evaluators.drift.rows=2",
)  # fmt: skip
FOLDERS = {
    "cifar10-ddim100": "pixels",
    "lsun-bedrooms-ldm4": "lsun-bedrooms",
    "lsun-churches-ldm8": "lsun-churches",
    "imagenet-ldm4": "imagenet-ldm4",
    "dit-xl-2": "dit",
    "stable-diffusion": "stable-diffusion",
}


@pytest.fixture(scope="module")
def known() -> Catalog:
    return catalog()


def folder_for(name: str, unet_folder: Path, tmp_path: Path) -> Path:
    """A tiny model of the protocol's kind."""
    if name == "pixels":
        return unet_folder
    pipelines.write(name, tmp_path / "pipeline")
    return tmp_path / "pipeline"


def observed(folder: Path) -> np.ndarray[Any, Any]:
    """The quantized model's images as the run itself saw them."""
    images: np.ndarray[Any, Any] = load_file(folder / "stages/observations/drift-quantized/images.safetensors")[
        "samples"
    ].numpy()
    return images


def test_every_protocol_is_tried() -> None:
    """None ships without its own tiny folder here, and each has a quick preset."""
    protocols = {name.removeprefix("protocol-") for name in shipped() if name.startswith("protocol-")}
    assert protocols == set(FOLDERS)
    for name in protocols:
        data = tomllib.loads(shipped()[f"protocol-{name}"].read_text(encoding="utf-8"))
        assert "fast" in data["presets"]
        assert "--set model.path=FOLDER" in shipped()[f"protocol-{name}"].read_text().replace("\n# ", " ")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_protocol_end_to_end(name: str, unet_folder: Path, tmp_path: Path, known: Catalog) -> None:
    """At fewer steps and samples: a report with figures, and an artifact that draws what the run saw, byte by byte."""
    if name == "stable-diffusion":
        pytest.importorskip("transformers")
    path = folder_for(FOLDERS[name], unet_folder, tmp_path)
    out = tmp_path / "run"
    changes = (*SMALL, "sampling.steps=4", "model.use=diffusers", f'model.path="{path}"')
    assert main(["run", f"protocol-{name}", "--out", str(out), *(x for c in changes for x in ("--set", c))]) == 0
    figures = {
        (m["name"], m["subject"]): m["value"] for m in json.loads((out / "report.json").read_text())["metrics"]
    }
    assert figures["psnr", "pair"] > (15 if name == "cifar10-ddim100" else 20)  # that one clips nothing on the way
    seen = observed(out)
    assert len(seen) == 3
    assert np.array_equal(sample(out, count=3, catalog=known), seen[:, :, :, :3])


@pytest.mark.parametrize("name", [n for n in pipelines.TEXT if n != "stable-diffusion"])
def test_text_pipelines_end_to_end(name: str, tmp_path: Path, known: Catalog) -> None:
    """SDXL, PixArt, SD3 and Flux too: from prompts to an artifact that draws what the run saw."""
    pytest.importorskip("transformers")
    pipelines.write(name, tmp_path / "pipeline")
    qpass.quantize(
        None,
        "protocol-stable-diffusion",
        overrides=[
            *SMALL, f'model.path="{tmp_path / "pipeline"}"', "sampling.steps=2", "calibration.samples=1",
            f'sampling.scheduler="{pipelines.TEXT[name][1]["scheduler"]}"',
        ],
        evaluators=[Drift(samples=3, rows=1)],
        out=tmp_path / "run",
    )  # fmt: skip
    assert np.array_equal(sample(tmp_path / "run", count=3, catalog=known), observed(tmp_path / "run"))


def test_what_the_protocols_say(known: Catalog) -> None:
    """The figures of the papers, once more."""
    plain = {name: read(f"protocol-{name}", catalog=known).sampling for name in FOLDERS}
    said = {n: (s.scheduler, s.steps, s.eta, s.guidance) for n, s in plain.items()}
    assert said == {
        "cifar10-ddim100": ("ddim", 100, 0.0, 1.0),
        "lsun-bedrooms-ldm4": ("ddim", 200, 1.0, 1.0),
        "lsun-churches-ldm8": ("ddim", 500, 0.0, 1.0),
        "imagenet-ldm4": ("ddim", 20, 0.0, 3.0),
        "dit-xl-2": ("ddpm", 250, 0.0, 1.5),
        "stable-diffusion": ("ddim", 50, 0.0, 7.5),
    }
    assert plain["cifar10-ddim100"].spacing == "quadratic"
    steps = [read("protocol-dit-xl-2", catalog=known, preset=f"steps-{n}").sampling.steps for n in (100, 50)]
    assert steps == [100, 50]


def test_what_the_papers_print(known: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset `paper`: their figures, as the tools they took resize, on as many images as they drew."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a cat\na dog\n", encoding="utf-8")
    counts = {}
    for name in FOLDERS:
        recipe = read(f"protocol-{name}", catalog=known, preset="paper")
        seen = {e.name: to_data(e) for e in recipe.evaluators if "resize" in to_data(e)}
        assert {e["resize"] for e in seen.values()} == {"tensorflow"}
        counts[name] = {(n, e["samples"]) for n, e in seen.items()}
    assert counts["cifar10-ddim100"] == {("fid", 50_000), ("inception-score", 50_000)}
    assert counts["lsun-bedrooms-ldm4"] == counts["lsun-churches-ldm8"] == {("fid", 50_000), ("sfid", 50_000)}
    assert {n for n, _ in counts["dit-xl-2"]} == {"fid", "sfid", "inception-score", "precision-recall"}
    assert counts["stable-diffusion"] == {("fid", 10_000)}


def test_the_papers_figures_end_to_end(tmp_path: Path) -> None:
    """FID and sFID of original and quantized against statistics that were made as the recipe says."""
    pipelines.write("lsun-bedrooms", tmp_path / "pipeline")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", arr_0=pictures)
    reference = tmp_path / "lsun-bedrooms.safetensors"
    assert (
        main(["reference", str(tmp_path / "pictures.npz"), "--resize", "tensorflow", "--out", str(reference)]) == 0
    )
    changes = (
        *SMALL, "sampling.steps=2", "model.use=diffusers", f'model.path="{tmp_path / "pipeline"}"',
        *(f'evaluators.{e}.against="{reference}"' for e in ("fid", "sfid")),
        "evaluators.fid.samples=3", "evaluators.sfid.samples=3",
    )  # fmt: skip
    command = ["run", "protocol-lsun-bedrooms-ldm4", "--preset", "paper", "--out", str(tmp_path / "run")]
    assert main([*command, *(x for c in changes for x in ("--set", c))]) == 0
    found = json.loads((tmp_path / "run" / "report.json").read_text())["metrics"]
    figures = {(m["name"], m["subject"]): m for m in found if m["name"] in ("fid", "sfid")}
    assert set(figures) == {(n, s) for n in ("fid", "sfid") for s in ("original", "quantized")}
    assert all(m["protocol"]["resize"] == "tensorflow" and m["value"] > 0 for m in figures.values())


def test_without_a_folder(known: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence with the way out, before anything is made."""
    assert main(["run", "protocol-lsun-bedrooms-ldm4", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no folder 'ldm4-lsun-bedrooms'; give one that `save_pretrained` wrote" in error
    assert "--set model.path=FOLDER" in error
    with pytest.raises(ModelError, match="no folder 'DiT-XL-2-256'"):
        qpass.quantize(None, "protocol-dit-xl-2", out=tmp_path / "dit")


def test_a_text_model_without_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said with all other mistakes, before any weight is read."""
    pytest.importorskip("transformers")
    pipelines.write("stable-diffusion", tmp_path / "pipeline")
    for file in tmp_path.rglob("unet/*.safetensors"):
        file.unlink()
    options = ["model.use=diffusers", f'model.path="{tmp_path / "pipeline"}"', "sampling.scheduler=euler-flow"]
    command = [x for option in options for x in ("--set", option)]
    (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").touch()
    assert main(["run", "w8a8", "--out", str(tmp_path / "run"), *command]) == 2
    error = capsys.readouterr().err
    assert "euler-flow is for rectified flows" in error
    assert "this model draws what a text says; give prompts" in error
