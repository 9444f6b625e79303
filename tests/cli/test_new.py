"""`qpass new` writes plugin packages that work as they stand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qpass.cli import main
from qpass.cli.new import KINDS, files
from qpass.plugins import catalog

REGISTERED = {"pass": "passes", "model": "models", "evaluator": "evaluators"}
NAMES = ["fold-scales", "a", "none", "pass", "model-adapter", "evaluator"]


@pytest.fixture
def package(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A generated package of the kind asked for."""
    folder = tmp_path / "package"
    assert main(["new", request.param, "my-own", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_as_a_plugin_file(kind: str, tmp_path: Path) -> None:
    """The module registers one class of its kind, under the name given, where all its options have defaults."""
    folder = tmp_path / "package"
    assert main(["new", kind, "my-own", "--out", str(folder)]) == 0
    found = catalog([folder / "qpass_my_own.py"])
    found.classes[REGISTERED[kind]]["my-own"]()


@pytest.mark.parametrize("package", KINDS, indirect=True)
def test_its_own_tests_pass(package: Path) -> None:
    """pytest, run in the package, passes."""
    env = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)]
    done = subprocess.run(command, cwd=package, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_any_name_gives_python_that_compiles(kind: str, name: str) -> None:
    """Names that are words of Python, or of the template's own imports, still give working source."""
    for path, text in files(kind, name).items():
        assert "$" not in text
        if path.endswith(".py"):
            compile(text, path, "exec")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_class_has_a_name_of_its_own(kind: str, name: str) -> None:
    """The class never hides one the module imports: its name occurs nowhere above its definition."""
    stem = name.replace("-", "_")
    head, _, tail = files(kind, name)[f"qpass_{stem}.py"].partition("kw_only=True)\nclass ")
    cls = tail.partition("(")[0]
    assert cls not in head.replace(",", " ").split()


@pytest.mark.parametrize("package", KINDS, indirect=True)
def test_it_is_clean(package: Path) -> None:
    """ruff has nothing to say."""
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    assert ruff is not None
    done = subprocess.run(
        [ruff, "check", "--no-cache", "."], cwd=package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("package", KINDS, indirect=True)
def test_it_installs(package: Path, tmp_path: Path) -> None:
    """pip builds it, and the installed package is found through its entry point."""
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*pip, "--target", str(target), str(package)], check=True)
    assert sorted(p.name for p in target.glob("*.py")) == ["qpass_my_own.py"]
    code = "from qpass.plugins import catalog; print([n for k in catalog().classes.values() for n in k])"
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "'my-own'" in done.stdout


def test_the_entry_point_names_the_module() -> None:
    """What pip reads and what is written agree."""
    project = tomllib.loads(files("pass", "fold-scales")["pyproject.toml"])["project"]
    assert project["entry-points"]["qpass"] == {"fold-scales": "qpass_fold_scales"}
    assert project["name"] == "qpass-fold-scales"


def test_every_file_is_named_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The listing is what was written, and then what to do next."""
    folder = tmp_path / "deep" / "package"
    assert main(["new", "pass", "my-own", "--out", str(folder)]) == 0
    listing, _, advice = capsys.readouterr().out.partition("\n\n")
    written = {str(p) for p in folder.rglob("*") if p.is_file()}
    assert set(listing.splitlines()) == written
    assert f"pip install -e {folder}" in advice


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --out the folder is qpass-NAME, here."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "pass", "my-own"]) == 0
    assert (tmp_path / "qpass-my-own" / "pyproject.toml").is_file()


def test_what_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that exists is refused, even an empty one, and stays as it was."""
    assert main(["new", "pass", "my-own", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {str(tmp_path)!r} exists; name another folder with --out\n"
    assert list(tmp_path.iterdir()) == []


def test_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A package cannot lie below a file, which stays as it was."""
    (tmp_path / "file").write_text("mine")
    assert main(["new", "pass", "my-own", "--out", str(tmp_path / "file" / "x")]) == 2
    said = "a file stands where a folder should be; choose another folder with --out\n"
    assert capsys.readouterr().err == f"error: cannot write {str(tmp_path / 'file' / 'x')!r}: {said}"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["My-Pass", "my_pass", "-x", "x-", "4bit", "a--b", "", "é", "a\n"])
def test_names_are_kebab_case(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Another name is refused with the rule."""
    assert main(["new", "pass", "--", name]) == 2
    assert "write small letters and digits in words joined by '-', a letter first" in capsys.readouterr().err


def test_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """A kind that is none is answered with the nearest."""
    assert main(["new", "evalutor", "x"]) == 2
    assert "unknown kind 'evalutor', did you mean 'evaluator'?" in capsys.readouterr().err
