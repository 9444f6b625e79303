"""The catalog keeps what works, says what does not and why, and never depends on order."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from qpass.artifact.ops import op_name, resolve
from qpass.cli import main
from qpass.errors import ArtifactError, PluginError
from qpass.plugins import KINDS, Catalog, catalog

PASS = """
import attrs
import qpass

@attrs.frozen(kw_only=True)
class {cls}(qpass.Pass):
    name = {name!r}
    def run(self, graph, ctx): ...

@qpass.hookimpl
def register_passes():
    return [{cls}]
"""
RETURNS = """
import attrs
import qpass
from qpass.manager import Pass

class Half(Pass):
    name = "half"

class Bare(Pass):
    name = "bare"
    def run(self, graph, ctx): ...

@attrs.frozen
class Nameless(Bare):
    name = None

@attrs.frozen
class Shouting(Bare):
    name = "ShoutingPass"

@attrs.define
class Changeable(Bare):
    name = "changeable"

@attrs.frozen
class Fine(Bare):
    name = "fine"

@qpass.hookimpl
def register_{kind}():
    return {returned}
"""
WRONG = {
    "passes": {
        "None": "register_passes must return a sequence of classes, not None",
        "'fine'": "register_passes must return a sequence of classes, not 'fine'",
        "Fine": "register_passes must return a sequence of classes, not <class",
        "(c for c in [Fine])": "register_passes must return a sequence of classes, not <generator",
        "[Fine()]": "register_passes must return subclasses of qpass.Pass, not Fine()",
        "[Fine, int]": "register_passes must return subclasses of qpass.Pass, not <class 'int'>",
        "[Half]": "Half does not define run",
        "[Pass]": "Pass.name must be kebab-case text, not None",
        "[Nameless]": "Nameless.name must be kebab-case text, not None",
        "[Shouting]": "Shouting.name must be kebab-case text, not 'ShoutingPass'",
        "[Bare]": "Bare must be a frozen attrs class: decorate it @attrs.frozen(kw_only=True)",
        "[Changeable]": "Changeable must be a frozen attrs class: decorate it @attrs.frozen(kw_only=True)",
        "1 / 0": "ZeroDivisionError: division by zero",
        "__import__('sys').exit(7)": "SystemExit: 7",
    },
    "models": {"[Fine]": "register_models must return subclasses of qpass.ModelAdapter, not <class"},
    "evaluators": {"[Fine]": "register_evaluators must return subclasses of qpass.Evaluator, not <class"},
    "quantizers": {"[Fine]": "register_quantizers must return subclasses of qpass.Quantizer, not <class"},
    "analyses": {"[Fine]": "register_analyses must return subclasses of qpass.Analysis, not <class"},
    "ops": {
        "None": "register_ops must return a sequence of functions, not None",
        "[lambda x: x]": "a graph op must be a function that its module defines by name, or a torch op, not <func",
        "__import__('sys').exit()": "SystemExit",
        "[5]": "a graph op must be a function that its module defines by name, or a torch op, not 5",
    },
}
EVERY_WRONG = [
    pytest.param(kind, returned, reason, id=f"{kind}-{returned}")
    for kind, cases in WRONG.items()
    for returned, reason in cases.items()
]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes modules look like installed plugins, listed in the order given, beside those really installed."""
    real, before = list(importlib.metadata.entry_points(group="qpass")), set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def install(first: bool = False, **sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        more = [importlib.metadata.EntryPoint(name, name, "qpass") for name in sources]
        found = [*more, *real] if first else [*real, *more]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)

    yield install
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and Path(str(sys.modules[name].__file__)).parent == tmp_path
        ):
            del sys.modules[name]


def names(found: Catalog) -> dict[str, list[str]]:
    return {kind: list(found.classes[kind]) for kind in KINDS}


def test_two_of_one_name(install: Install, tmp_path: Path) -> None:
    """A clash names both modules, whichever came first."""
    install(one=PASS.format(cls="A", name="same"), two=PASS.format(cls="B", name="same"))
    with pytest.raises(PluginError, match="two passes are named 'same'") as caught:
        catalog()
    assert str(tmp_path / "one.py") in str(caught.value)
    assert str(tmp_path / "two.py") in str(caught.value)


def test_a_name_of_ours(install: Install, tmp_path: Path) -> None:
    """A stranger cannot replace a pass of ours, even where it is found first."""
    install(first=True, one=PASS.format(cls="A", name="assign"))
    with pytest.raises(PluginError, match=r"two passes are named 'assign': .*assign\.py") as caught:
        catalog()
    assert str(tmp_path / "one.py") in str(caught.value)


def test_a_name_may_be_used_by_two_kinds(install: Install) -> None:
    """Names are unique within a kind only."""
    install(one=PASS.format(cls="A", name="drift"))
    assert "drift" in catalog().classes["passes"]
    assert "drift" in catalog().classes["evaluators"]


def test_order_decides_nothing(install: Install) -> None:
    """The catalog is the same, name by name, whatever order plugins are found in."""
    sources = {n: PASS.format(cls=n.title(), name=n) for n in ("zebra", "ant", "moth")}
    install(**sources)
    ahead = names(catalog())
    install(first=True, **dict(reversed(sources.items())))
    assert names(catalog()) == ahead
    assert ahead["passes"] == sorted(ahead["passes"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def f(:", "SyntaxError: "),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("raise ValueError", "ValueError"),
        (
            "import qpass\n@qpass.hookimpl\ndef register_pases(): return []",
            "PluginError: unknown hook 'register_pases', did you mean 'register_passes'",
        ),
        ("import qpass\n@qpass.hookimpl\ndef register_passes(graph): return []", "PluginValidationError: "),
    ],
    ids=lambda text: text.splitlines()[-1] if "\n" in text else text,
)
def test_a_plugin_that_cannot_be_imported(install: Install, source: str, reason: str) -> None:
    """It is listed with its reason, in one line, and everything else works."""
    whole = names(catalog())
    install(first=True, torn=source)
    found = catalog()
    (broken,) = found.broken
    assert broken.plugin == "torn (torn)"
    assert broken.reason.startswith(reason)
    assert "\n" not in broken.reason
    assert names(found) == whole


def test_half_a_plugin_is_none(install: Install) -> None:
    """Of a plugin that is broken at a later hook, the earlier ones are not used either."""
    later = "\n@qpass.hookimpl\ndef report_ready(colour): ..."
    install(torn=PASS.format(cls="A", name="mine") + later)
    assert "mine" not in catalog().classes["passes"]


def test_an_unknown_name_mentions_broken_plugins(install: Install) -> None:
    """The missing name may have been theirs."""
    install(torn="raise RuntimeError('no licence')")
    with pytest.raises(PluginError) as caught:
        catalog().find("passes", "brecq2000")
    assert str(caught.value).endswith("(broken plugins: torn (torn); see `qpass list passes`)")


@pytest.mark.parametrize(("kind", "returned", "reason"), EVERY_WRONG)
def test_a_wrong_return_value(install: Install, kind: str, returned: str, reason: str) -> None:
    """The rule it broke is given as the reason, and everything else works."""
    whole = names(catalog())
    install(wrong=RETURNS.format(kind=kind, returned=returned))
    found = catalog()
    (broken,) = found.broken
    assert broken.plugin == "wrong (wrong)"
    assert reason in broken.reason
    assert names(found) == whole


@pytest.mark.parametrize(("kind", "returned", "reason"), EVERY_WRONG)
def test_a_wrong_file(tmp_path: Path, kind: str, returned: str, reason: str) -> None:
    """A file given by --plugin was asked for: what is wrong with it is an error at once."""
    file = tmp_path / "wrong.py"
    file.write_text(RETURNS.format(kind=kind, returned=returned))
    with pytest.raises(PluginError) as caught:
        catalog([file])
    assert str(caught.value).startswith(f"plugin {str(file)!r}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("source", ["raise RuntimeError('no licence')", "import sys; sys.exit()", "def f(:"])
def test_a_file_that_cannot_be_imported(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One error that names the file, and exit code 2."""
    file = tmp_path / "torn.py"
    file.write_text(source)
    assert main(["list", "passes", "--plugin", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: plugin {str(file)!r} cannot be loaded: ")
    assert "Traceback" not in err


def test_a_file_that_is_no_python(tmp_path: Path) -> None:
    """Plugin files end in .py."""
    file = tmp_path / "plugin.txt"
    file.write_text("")
    with pytest.raises(PluginError, match=r"a plugin file ends in \.py"):
        catalog([file])


def test_the_same_file_twice(tmp_path: Path) -> None:
    """It is loaded once, however its path is written."""
    file = tmp_path / "mine.py"
    file.write_text(PASS.format(cls="A", name="mine"))
    found = catalog([file, tmp_path / "." / "mine.py", tmp_path / ".." / tmp_path.name / "mine.py"])
    assert "mine" in found.classes["passes"]


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """Their code could not be told apart by what a run remembers of it."""
    files = [tmp_path / folder / "mine.py" for folder in ("a", "b")]
    for file, name in zip(files, ("one", "two"), strict=True):
        file.parent.mkdir()
        file.write_text(PASS.format(cls="A", name=name))
    with pytest.raises(PluginError, match="have one name; rename one of them"):
        catalog(files)


def test_a_clash_of_ops(install: Install) -> None:
    """Two functions cannot share the name an artifact would know them by."""
    op = "def f(x): return x\nf.__module__ = 'shared'\n"
    hook = "import qpass\n@qpass.hookimpl\ndef register_ops(): return [f]\n"
    install(one=op + hook, two=op + hook)
    with pytest.raises(PluginError, match=r"two graph ops are named 'shared:f': one of one .*, one of two"):
        catalog()


def test_a_torch_op_of_a_plugin(install: Install) -> None:
    """An operator registered with torch.library goes into artifacts under torch's own name for it."""
    install(
        lib=(
            "import torch, qpass\n"
            "@torch.library.custom_op('stranger_lib::double', mutates_args=())\n"
            "def double(x: torch.Tensor) -> torch.Tensor: return x * 2\n"
            "@qpass.hookimpl\ndef register_ops(): return [torch.ops.stranger_lib.double.default]\n"
        )
    )
    ops = catalog().ops
    double = torch.ops.stranger_lib.double.default
    assert op_name(double, ops) == "stranger_lib.double.default"
    assert resolve("stranger_lib.double.default", ops) is double
    with pytest.raises(ArtifactError, match="of the plugin 'stranger_lib', which is not installed"):
        resolve("stranger_lib.double.default", {})
