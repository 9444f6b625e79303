"""A third party's distribution, really installed: found, run, reported, and missed once it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from qpass.cli import main

HERE = Path(__file__).parent.parent / "stranger"
RECIPE = HERE / "recipe.toml"
Qpass = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip has installed the distribution into, offline."""
    target = tmp_path_factory.mktemp("stranger") / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"),
            *("--no-index", "--disable-pip-version-check", "--target", target, HERE),
        ],
        check=True,
    )
    return target


@pytest.fixture(scope="module")
def qpass(site: Path) -> Qpass:
    """The command line in a process that finds the distribution."""

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "qpass", *args]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def done(qpass: Qpass, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of its recipe."""
    folder = tmp_path_factory.mktemp("run") / "out"
    result = qpass("run", RECIPE, "--out", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def uninstalled() -> Iterator[None]:
    """This process, which has never seen the distribution."""
    assert find_spec("qpass_stranger") is None, "it is installed here too; first: pip uninstall qpass-stranger"
    assert not any("qpass_stranger" in name for name in sys.modules)
    yield
    assert not any("qpass_stranger" in name for name in sys.modules)


BRINGS = {
    "passes": "clip-outliers",
    "models": "stranger-net",
    "evaluators": "colour-balance",
    "quantizers": "sigma",
}


def test_it_is_listed(site: Path) -> None:
    """Each of its plugins stands among ours, with the name of its distribution, and nothing is broken."""
    # one process for all kinds: most of a process's time goes into importing torch
    script = f"from qpass.cli import main\nfor kind in {list(BRINGS)}: main(['list', kind, '--json'])"
    env = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    documents = "[" + result.stdout.replace("}\n{", "}, {") + "]"
    for listed in json.loads(documents):
        (found,) = [item for item in listed["items"] if item["name"] == BRINGS[listed["kind"]]]
        assert found["package"] == "qpass-stranger"
        assert found["summary"].endswith(".")
        assert listed["broken"] == []
        assert len(listed["items"]) > 1


def test_its_recipe_runs(done: Path) -> None:
    """The report holds its metric, its curve and its images; its pass really clipped something."""
    report = json.loads((done / "report.json").read_text())
    (metric,) = report["metrics"]
    assert (metric["evaluator"], metric["name"], metric["subject"]) == ("colour-balance", "colour_shift", "pair")
    assert 0 < metric["value"] < 0.1
    assert [record["pass"] for record in report["records"]] == ["clip-outliers", "assign", "simulate"]
    assert report["records"][0]["notes"] == {"clips": 4}
    html = (done / "report.html").read_text()
    for shown in ("colour_shift", "mean colour", "drawn", "data:image/png"):
        assert shown in html


def test_its_op_makes_a_difference(done: Path) -> None:
    """Its function stands in the artifact by name: without it the graph would compute something else."""
    document = json.loads((done / "artifact" / "qpass.json").read_text())
    assert "qpass_stranger.clip_outliers:clip_to_sigmas" in document["graph"]["targets"]
    assert document["plugins"] == ["stranger (qpass_stranger)"]


def test_they_keep_the_contract(site: Path) -> None:
    """What every plugin keeps to, its own keep to: the tests in `contract`, where it is installed."""
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    contract = Path(__file__).parent / "contract"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", contract, "-k"]
    result = subprocess.run(
        [*command, " or ".join(BRINGS.values())], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout.splitlines()[-1]


def test_the_same_again_resumes(qpass: Qpass, done: Path) -> None:
    """A second run keeps every stage and writes the same report."""
    before = (done / "report.json").read_bytes()
    again = qpass("run", RECIPE, "--out", done)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("kept from an earlier run") == 3
    assert (done / "report.json").read_bytes() == before


def test_the_artifact_loads_where_it_is_installed(qpass: Qpass, done: Path, tmp_path: Path) -> None:
    """And draws images."""
    result = qpass("sample", done, "--count", "4", "--out", tmp_path / "grid.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "grid.png").is_file()


def test_the_artifact_elsewhere(
    done: Path, uninstalled: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without the distribution there is one error, and it names the package."""
    assert main(["sample", str(done), "--count", "4", "--out", str(tmp_path / "grid.png")]) == 2
    assert capsys.readouterr().err == (
        f"error: {str(done / 'artifact' / 'qpass.json')!r} cannot be loaded: "
        "the graph calls 'qpass_stranger.clip_outliers:clip_to_sigmas' of the plugin 'qpass_stranger', "
        "which is not installed; install it, or give its file with --plugin\n"
    )
    assert not (tmp_path / "grid.png").exists()


def test_the_recipe_elsewhere(
    uninstalled: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every name that is missing is said at once, with what there is instead, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(RECIPE)]) == 2
    err = capsys.readouterr().err
    assert "4 mistakes" in err
    for unknown in (
        "model: unknown model 'stranger-net', known: ",
        "passes[1]: unknown pass 'clip-outliers', known: ",
        "passes[3] simulate: input: unknown quantizer 'sigma', known: ",
        "evaluators[1]: unknown evaluator 'colour-balance', known: ",
    ):
        assert unknown in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_near_name(qpass: Qpass, tmp_path: Path) -> None:
    """A typo is answered with the stranger's name where it is installed."""
    typo = tmp_path / "typo.toml"
    typo.write_text(RECIPE.read_text().replace('"clip-outliers"', '"clip-outlier"'))
    result = qpass("run", typo, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "unknown pass 'clip-outlier', did you mean 'clip-outliers'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
