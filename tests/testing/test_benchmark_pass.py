"""The fixture that times a pass, as a stranger's own tests use it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import attrs
import pytest
import torch
from qpass_evaluators.size import folder_bytes
from qpass_models.diffusers_model import DiffusersModel
from qpass_passes.assign import Assign
from qpass_passes.simulate import Simulate

from qpass.manager import Pass
from qpass.testing import with_figures
from qpass.testing.passes import CannotRunAloneError, Workshop, after, before

TESTS = Path(__file__).parent.parent
STRANGERS = """
import attrs, qpass
from qpass_stranger import ClipOutliers, StrangerNet

NET = StrangerNet(width=8)

@attrs.frozen(kw_only=True)
class Lost(qpass.Pass):
    name = "lost"
    needs = frozenset({"moonlight"})

    def run(self, graph, ctx): ...

def test_rewrite(benchmark_pass):
    made = benchmark_pass.rewrite(ClipOutliers(sigmas=3.0), NET)
    assert made(*NET.example()).shape == (2, 3, 8, 8)

def test_denoise(benchmark_pass):
    benchmark_pass.denoise(ClipOutliers(sigmas=3.0), NET)

def test_lost(benchmark_pass):
    benchmark_pass.rewrite(Lost(), NET)

def test_no_layer(benchmark_pass):
    benchmark_pass.rewrite(ClipOutliers(only="nowhere"), NET)
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(folder=tmp_path_factory.mktemp("workshop"))


@attrs.frozen(kw_only=True)
class Needy(Pass):
    """Needs whatever it is told."""

    name = "needy"

    def run(self, graph, ctx):
        raise AssertionError("never run")


def needy(*facts: str) -> type[Pass]:
    return type("Needy", (Needy,), {"needs": frozenset(facts), "name": "needy"})


def test_what_stands_before(catalog):
    """Each fact is provided by a pass that is installed; where none does, that is said."""
    assert before(Assign, catalog) == []
    assert before(Simulate, catalog) == [Assign]
    assert before(needy("specs"), catalog) == [Assign]
    with pytest.raises(
        CannotRunAloneError, match="needy needs 'moonlight', which no pass that is installed provides"
    ):
        before(needy("specs", "moonlight"), catalog)
    with pytest.raises(CannotRunAloneError, match="cannot come after 'simulate'"):
        before(needy("realised"), catalog)  # as it does not say that it may


def test_what_comes_after(catalog):
    """The model that is measured is a quantized one, whatever the pass does."""
    assert after([Needy], catalog) == [Assign, Simulate]
    assert after([Assign], catalog) == [Simulate]
    assert after([Assign, Simulate], catalog) == []


def test_figures(workshop, unet_folder):
    """SQNR is that of the model made, MB that of its files, and more bits keep more of the teacher."""
    adapter = DiffusersModel(path=str(unet_folder))
    many, few = (workshop.trial(Assign(weight=f"int{bits} channel"), adapter) for bits in (8, 3))
    for trial in (many, few):
        assert set(trial.figures) == {"sqnr_db", "psnr_db", "packed_mb"}
        assert trial.figures["packed_mb"] == folder_bytes(trial.folder) / 1e6
        assert all(math.isfinite(value) for value in trial.figures.values())
    for name in ("sqnr_db", "psnr_db", "packed_mb"):
        assert many.figures[name] > few.figures[name]
    inputs = adapter.example(8)
    with torch.no_grad():
        expected = many.ctx.reference(*inputs)
        errors = [(trial.made(*inputs) - expected).square().mean() for trial in (many, few)]
    assert 0 < errors[0] < errors[1]


def test_the_pass_works_on_a_copy_of_its_own(workshop, unet_folder):
    """Run again and again, it is given the same graph, and its teacher stays as it was."""
    trial = workshop.trial(Simulate(rows=8), DiffusersModel(path=str(unet_folder)))
    inputs = trial.ctx.model.example(2)
    with torch.no_grad():
        teacher, ready = trial.ctx.reference(*inputs), trial.ready(*inputs)
        first, second = (trial.rewrite(trial.fresh())(*inputs) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, teacher)
        assert torch.equal(trial.ready(*inputs), ready)
        assert torch.equal(trial.ctx.reference(*inputs), teacher)


def test_names_tell_figures_once():
    """What the fixture kept is in the name; what another benchmark kept is not."""
    kept = {"sqnr_db": 19.123, "psnr_db": None, "packed_mb": 5.0, "peak_memory_mb": 12.4}
    groups = [("g", [{"name": "a", "extra_info": kept}, {"name": "b", "extra_info": {"sqnr": 1}}, {"name": "c"}])]
    told = with_figures(with_figures(groups))
    assert [row["name"] for row in told[0][1]] == ["a: SQNR 19.12 dB, 5.00 MB, peak 12 MB", "b", "c"]
    assert groups[0][1][0]["name"] == "a"


def test_it_is_found_by_pytest():
    """The installed distribution says where pytest finds it."""
    found = {entry.value for entry in entry_points(group="pytest11")}
    assert "qpass.testing" in found, "install qpass again: it has an entry point that this installation has not"


def test_only_pytest_needs_pytest():
    """Without pytest qpass works; and pytest, which loads the plugin for every session, gets no torch with it."""
    for blocked, code in (
        ("pytest", "import qpass; qpass.Pass; qpass.quantize"),
        ("torch", "import qpass.testing"),
    ):
        script = f"import sys; sys.modules[{blocked!r}] = None; {code}"
        subprocess.run([sys.executable, "-c", script], check=True)


def test_in_a_strangers_tests(tmp_path):
    """Its pass is timed on its model and compared; what cannot run alone is skipped, and why is said."""
    site, saved = tmp_path / "site", tmp_path / "saved.json"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", site, TESTS / "stranger"], check=True)
    (tmp_path / "test_speed.py").write_text(STRANGERS)
    # under xdist nothing is timed, and its workers say so to whatever they start
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    pytest_ = [sys.executable, "-m", "pytest", "-rs", "-p", "qpass.testing", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_, "--benchmark-warmup=off", "--benchmark-max-time=0.1", f"--benchmark-json={saved}", tmp_path],
        cwd=tmp_path, env={**ours, "PYTHONPATH": str(site), "COLUMNS": "300"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 2 skipped" in done.stdout
    assert "lost needs 'moonlight', which no pass that is installed provides" in done.stdout
    assert "clip-outliers: no layer matches 'nowhere'" in done.stdout
    rewrite, denoise = json.loads(saved.read_text())["benchmarks"]
    assert rewrite["group"] == "passes on stranger-net"
    assert rewrite["stats"]["rounds"] == 3
    assert denoise["group"] == "models made of stranger-net"
    for row in (rewrite, denoise):
        kept = row["extra_info"]
        assert set(kept) == {"options", "sqnr_db", "psnr_db", "packed_mb", "peak_memory_mb"}
        assert kept["options"] == "ClipOutliers(sigmas=3.0, only='*')"
        assert kept["sqnr_db"] > 5
        shown = f"{row['name']}: SQNR {kept['sqnr_db']:.2f} dB, PSNR {kept['psnr_db']:.2f} dB"
        assert shown in done.stdout
        compared = subprocess.run(
            [sys.executable, "-c", "from pytest_benchmark.cli import main; main()", "compare", saved],
            cwd=TESTS / "benchmarks", capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"SQNR {kept['sqnr_db']:.2f} dB" in compared.stdout
