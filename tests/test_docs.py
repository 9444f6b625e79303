"""The README pages tell the truth about the code."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import attrs
import pytest

from qpass import hookspecs
from qpass.catalogue import PAGES, page
from qpass.cli.describe import origin

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", PAGES)
def test_the_catalogue_is_as_the_code_says(name, catalog):
    """Each page equals what `python -m qpass.catalogue` would write now."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == page(text, PAGES[name], catalog), "run `python -m qpass.catalogue`"


def test_every_hook_pass_and_option_is_described(catalog):
    """Every hook, every plugin that ships and every option of each has a line in some README page, with words in it."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    hooks = [n for n, f in inspect.getmembers(hookspecs, inspect.isfunction) if f.__module__ == hookspecs.__name__]
    for hook in hooks:
        assert re.search(rf"\| `{hook}\(.*\)` \| \w+", text), hook
    for kind in ("passes", "models", "evaluators", "quantizers"):
        for name, cls in catalog.classes[kind].items():
            if origin(cls) != "qpass":
                continue
            assert f"### `{name}`" in text
            own = text.partition(f"### `{name}`")[2].partition("\n### ")[0]
            for field in attrs.fields(cls):
                if field.init:
                    assert re.search(rf"\| `{field.name}` \| .* \| \w+", own), f"{name}.{field.name}"


def test_the_pass_in_the_readme_runs(tmp_path, context):
    """The pass shown in passes/README.md is copied out, loaded as a plugin file, and clips what it says."""
    import copy

    from qpass.plugins import catalog
    from qpass.slots import layer

    code = (ROOT / "passes" / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "clip.py").write_text(code, encoding="utf-8")
    step = catalog([tmp_path / "clip.py"]).find("passes", "clip-weights")(sigmas=1.0)
    result = step.run(copy.deepcopy(context.reference), context)
    for node in context.reference.graph.nodes:
        module = layer(context.reference, node)
        if module is not None:
            clipped = result.graph.get_submodule(str(node.target)).weight
            assert clipped.abs().max() <= module.weight.std() * 1.0001


def test_the_wheel_holds_four_packages(tmp_path):
    """The built wheel's top-level names are the core and the three plugin packages, zoo and templates included."""
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"qpass", "qpass_passes", "qpass_models", "qpass_evaluators"}
    for needed in (
        "qpass/recipes/w8a8.toml",
        "qpass/report/template.html.j2",
        "qpass/py.typed",
        "qpass_models/zoo/cifar10-unet/diffusion_pytorch_model.safetensors",
    ):
        assert needed in names


def test_the_systems_it_runs_on():
    """Folders are held by locks that only Unix has; who installs it is told, and so is who looks it up."""
    assert "import fcntl" in (ROOT / "qpass" / "files.py").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["classifiers"] == ["Operating System :: POSIX :: Linux", "Operating System :: MacOS"]
    first = (ROOT / "README.md").read_text(encoding="utf-8").partition("$ qpass run tcaq")[0]
    assert "Linux or macOS" in first
