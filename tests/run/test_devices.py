"""Devices: a clear word where there is none, and the same work where there is one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import qpass
from qpass.cli import main
from qpass.errors import DeviceError
from qpass.run import select_device

Command = Callable[..., int]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_no_gpu(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str], device: str) -> None:
    """`--device cuda` without one is refused with exit code 2 before anything is written."""
    assert run(tmp_path / "run", "--device", device) == 2
    said = capfd.readouterr().err
    assert (
        f"error: device '{device}': this machine has no CUDA device that torch can use; try --device cpu" in said
    )
    assert not (tmp_path / "run").exists()


@without_gpu
def test_no_gpu_to_load_or_sample_on(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading onto, and sampling on, a device that is not there says so too."""
    assert run(tmp_path / "run") == 0
    with pytest.raises(DeviceError, match="this machine has no CUDA device"):
        qpass.load(tmp_path / "run", "cuda")
    code = main(["sample", str(tmp_path / "run"), "--device", "cuda", "--out", str(tmp_path / "grid.png")])
    assert code == 2
    assert "this machine has no CUDA device" in capfd.readouterr().err
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "is not a name torch knows; write cpu, cuda or cuda:0"),
        ("", "is not a name torch knows"),
        ("mps", "qpass runs on cpu and cuda"),
        ("meta", "qpass runs on cpu and cuda"),
    ],
)
def test_other_devices(name: str, message: str) -> None:
    """A device that torch or qpass does not know is named in the error."""
    with pytest.raises(DeviceError, match=f"device '{name}'.* {message}|device '{name}': {message}"):
        select_device(name)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_recipe_on_cuda(run: Command, tmp_path: Path) -> None:
    """On a GPU the recipe runs through, its artifact loads there and on the CPU, and both give one answer."""
    assert run(tmp_path / "cuda", "--device", "cuda") == 0
    assert run(tmp_path / "cpu") == 0
    reports = [json.loads((tmp_path / where / "report.json").read_text()) for where in ("cuda", "cpu")]
    assert [report["device"] for report in reports] == ["cuda", "cpu"]
    sqnr = [next(m["value"] for m in report["metrics"] if m["name"] == "sqnr") for report in reports]
    assert sqnr[0] == pytest.approx(sqnr[1], abs=1.5)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    there, here = qpass.load(tmp_path / "cuda", "cuda"), qpass.load(tmp_path / "cuda", "cpu")
    assert there.device.type == "cuda"
    with torch.no_grad():
        a, b = there.denoise(x.cuda(), 500).cpu(), here.denoise(x, 500)
    assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda_goes_on(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without its last stage it goes on there from the one before, to the same report."""
    assert run(tmp_path / "cuda", "--device", "cuda") == 0
    report = (tmp_path / "cuda" / "report.json").read_bytes()
    shutil.rmtree(tmp_path / "cuda" / "stages" / "02-simulate")
    assert run(tmp_path / "cuda", "--device", "cuda") == 0
    assert "1. assign: kept from an earlier run" in capfd.readouterr().err
    assert (tmp_path / "cuda" / "report.json").read_bytes() == report
