"""The code version of a plugin is found wherever its class was written."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from qpass.cli import main
from qpass.plugins import catalog
from qpass.run.fingerprint import own_code

PASS = """
import attrs
import qpass

@attrs.frozen(kw_only=True)
class Mine(qpass.Pass):
    name = "mine"
    def run(self, graph, ctx): ...

@qpass.hookimpl
def register_passes():
    return [Mine]
"""


def test_a_file_edited_meanwhile(tmp_path: Path) -> None:
    """One that is read again in the same process has another version, so nothing made with the old is kept."""
    file = tmp_path / "mine.py"
    versions = []
    for source in (PASS, PASS + "\n# better now\n", PASS):
        file.write_text(source)
        versions.append(own_code(catalog([file]).find("passes", "mine")()))
    assert versions[0] == versions[2] != versions[1]
    assert list(versions[0]) == ["qpass_plugin_mine"]


def test_a_namespace_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no file, but what lies in it has."""
    inner = tmp_path / "stranger_space" / "part"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text(PASS)
    monkeypatch.syspath_prepend(tmp_path)
    part = importlib.import_module("stranger_space.part")
    assert list(own_code(part.Mine())) == ["stranger_space.part"]
    for name in ("stranger_space", "stranger_space.part"):
        monkeypatch.delitem(sys.modules, name)


def test_typed_at_a_prompt() -> None:
    """Two classes that cannot be read again are never taken for the same."""

    def typed() -> object:
        names: dict[str, object] = {"__name__": "no_such_file"}
        exec("class Mine:\n    pass", names)
        return attrs.frozen(names["Mine"])()  # type: ignore[arg-type]

    one, other = typed(), typed()
    assert own_code(one) == own_code(one)
    assert own_code(one) != own_code(other)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a pass in it, and a part that nobody has imported yet."""
    folder = tmp_path / "stranger_edited"
    folder.mkdir()
    (folder / "__init__.py").write_text(PASS)
    (folder / "later.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger_edited"]:
        del sys.modules[name]


def test_what_is_at_work_counts(package: Path) -> None:
    """An edit of a file that is loaded shows when it is loaded anew; of one that is not, at once."""
    made = importlib.import_module("stranger_edited").Mine()
    before = own_code(made)
    (package / "__init__.py").write_text(PASS + "# better now\n")
    assert own_code(made) == before
    (package / "later.py").write_text("VALUE = 22\n")
    assert own_code(made) != before
    (package / "later.py").write_text("VALUE = 1\n")
    assert own_code(made) == before
    importlib.reload(sys.modules["stranger_edited"])
    assert own_code(made) != before


@pytest.mark.parametrize("edited_first", [True, False])
def test_a_part_edited_when_it_was_loaded(package: Path, edited_first: bool) -> None:
    """Where nobody can tell which version is at work, nothing is ever taken for made with it."""
    made = importlib.import_module("stranger_edited").Mine()
    own_code(made)
    if not edited_first:
        importlib.import_module("stranger_edited.later")
    (package / "later.py").write_text("VALUE = 22\n")
    if edited_first:
        importlib.import_module("stranger_edited.later")
    then = own_code(made)
    assert own_code(made) == then
    importlib.reload(sys.modules["stranger_edited.later"])
    assert own_code(made) != then
    (package / "later.py").write_text("VALUE = 1\n")
    importlib.reload(sys.modules["stranger_edited.later"])
    assert own_code(made) != then


EDITED = '''
from pathlib import Path
import attrs, qpass

FACTOR = 1.0

@attrs.frozen(kw_only=True)
class Edit(qpass.Pass):
    """Stands for someone who saves an edit of this file while the run is at work."""

    name = "edit"
    into: str = attrs.field(metadata={"help": "what FACTOR becomes"})

    def run(self, graph, ctx):
        file = Path(__file__)
        file.write_text(file.read_text().replace("FACTOR = 1.0", f"FACTOR = {self.into}"))
        return qpass.PassResult(graph=graph, changed=False)

@attrs.frozen(kw_only=True)
class Factor(qpass.Evaluator):
    """FACTOR."""

    name = "factor"

    def observe(self, subject, ctx):
        return qpass.Observation(numbers={"factor": FACTOR})

    def score(self, candidate, reference):
        return [qpass.Metric(name="factor", value=candidate.numbers["factor"])]

@qpass.hookimpl
def register_passes():
    return [Edit]

@qpass.hookimpl
def register_evaluators():
    return [Factor]
'''


def test_a_plugin_edited_while_its_run_is_at_work(recipe: Path, tmp_path: Path) -> None:
    """What the old code saw is not kept for the new: the next run looks again."""
    plugin, own = tmp_path / "edited.py", tmp_path / "own.toml"
    plugin.write_text(EDITED)
    text = recipe.read_text()
    parts = '[[passes]]\nuse = "edit"\ninto = "22.0"\n[[evaluators]]\nuse = "factor"\n'
    own.write_text(text[: text.index("[[passes]]")] + parts)
    seen = []
    for _ in range(2):
        assert main(["run", str(own), "--plugin", str(plugin), "--out", str(tmp_path / "run")]) == 0
        seen.append(json.loads((tmp_path / "run" / "report.json").read_text())["metrics"][0]["value"])
    assert seen == [1.0, 22.0]


WITH_OP = '''
import attrs, qpass

def nudge(x):
    return x * FACTOR

@attrs.frozen(kw_only=True)
class Nudge(qpass.Pass):
    """Multiplies the output by a function of this file."""

    name = "nudge"

    def run(self, graph, ctx):
        (end,) = graph.graph.find_nodes(op="output")
        source = end.all_input_nodes[0]
        with graph.graph.inserting_before(end):
            end.replace_input_with(source, graph.graph.call_function(nudge, (source,)))
        graph.recompile()
        return qpass.PassResult(graph=graph, changed=True)

@qpass.hookimpl
def register_passes():
    return [Nudge]

@qpass.hookimpl
def register_ops():
    return [nudge]
'''


def test_a_function_in_the_graph_is_edited(recipe: Path, tmp_path: Path) -> None:
    """An artifact names a plugin's function and holds none of its code: what was seen with the old one is not kept."""
    plugin, own = tmp_path / "op.py", tmp_path / "own.toml"
    text = recipe.read_text()
    parts = '[[passes]]\nuse = "nudge"\n[[evaluators]]\nuse = "drift"\nsamples = 2\n'
    own.write_text(text[: text.index("[[passes]]")] + parts)

    def seen(factor: float, out: str) -> dict[str, float]:
        plugin.write_text(WITH_OP + f"\nFACTOR = {factor}\n")
        assert main(["run", str(own), "--plugin", str(plugin), "--out", str(tmp_path / out)]) == 0
        report = json.loads((tmp_path / out / "report.json").read_text())
        return {metric["name"]: metric["value"] for metric in report["metrics"]}

    before, after = seen(1.5, "run"), seen(1.01, "run")
    assert after == seen(1.01, "fresh")
    # the output is off by a hundredth of itself: its error is 40 dB below it, whatever the model
    assert after["sqnr"] == pytest.approx(40, abs=1e-2)
    assert after["psnr"] > before["psnr"]
