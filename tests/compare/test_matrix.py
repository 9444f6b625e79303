"""What a comparison makes of cells that cannot even be looked at."""

from __future__ import annotations

import sys

import pytest

from qpass.compare.matrix import Settings, compare
from qpass.compare.plan import plan
from qpass.plugins import catalog as catalog_with
from qpass.progress import Progress


@pytest.mark.parametrize("code", ["raise SystemExit(7)", "import os; os.kill(os.getpid(), 15)"])
def test_a_process_that_never_listens(catalog, tmp_path, monkeypatch, code):
    """One that ends before it has read its order is a cell that failed, and how it ended is said."""
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\n{code}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    cells = plan(["w8a8", "w4a4"], catalog=catalog, out=tmp_path / "out")
    heard = []
    done = compare(cells, Settings(out=tmp_path / "out"), Progress(), lambda document: heard.append(str(document)))
    ended = {"raise": "the process ended with exit code 7", "impor": "the process was ended by signal 15"}[
        code[:5]
    ]
    assert [(cell["status"], cell["error"]) for cell in done["cells"]] == [("failed", ended)] * 2
    assert len(heard) == 2
    assert "'status': 'waiting'" in heard[0]


def test_a_model_that_is_not_there(catalog, tmp_path):
    """Its fingerprint cannot be told; that is left for the run to explain."""
    recipe = tmp_path / "gone.toml"
    recipe.write_text('model = {use = "diffusers", path = "nowhere"}\npasses = ["assign"]\n')
    (cell,) = plan([str(recipe)], catalog=catalog, out=tmp_path / "out")
    (row,) = compare([cell], Settings(out=tmp_path / "out"), Progress())["cells"]
    assert row["status"] == "failed"
    assert "'nowhere'" in row["error"]
    assert "bug" not in row["error"]


def test_a_file_of_the_users_with_a_librarys_name(catalog, tmp_path, monkeypatch):
    """A cell finds modules where this process does, so not in the current folder, from which it was not started."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "bin"), *(p for p in sys.path if p)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tomli_w.py").write_text("raise SystemExit('mine')\n")
    test_a_model_that_is_not_there(catalog, tmp_path)


RECIPE = """
model = {{use = "diffusers", path = {model!r}}}
passes = [{{use = "assign", weight = "int4 channel", input = "float", edge_input = "float"}}, "mine"]
evaluators = ["size"]
"""
PLUGIN = '''
import attrs, qpass

@attrs.frozen(kw_only=True)
class Mine(qpass.Pass):
    """Does nothing."""

    name = "mine"

    def run(self, graph, ctx):
        return qpass.PassResult(graph=graph, changed=False)

@qpass.hookimpl
def register_passes():
    return [Mine]
'''


def test_files_edited_while_cells_wait(unet_folder, tmp_path):
    """A cell carries out the recipe as it was read; a plugin that is another by now is named, and nothing is run."""
    file, plugin = tmp_path / "tiny.toml", tmp_path / "mine.py"
    file.write_text(RECIPE.format(model=str(unet_folder)))
    plugin.write_text(PLUGIN)
    settings = Settings(out=tmp_path / "out", plugins=(plugin,))
    (cell,) = plan([str(file)], catalog=catalog_with([plugin]), out=settings.out)
    file.write_text(file.read_text().replace("int4", "int2"))
    (row,) = compare([cell], settings, Progress())["cells"]
    assert (row["status"], row["error"]) == ("done", None)
    assert (cell.folder / "recipe.toml").read_text() == cell.recipe.toml()
    assert 'weight = "int4 channel"' in cell.recipe.toml()

    (cell.folder / "artifact" / "qpass.json").unlink()
    (cell.folder / "report.json").unlink()  # so that it is begun again
    plugin.write_text(PLUGIN.replace("changed=False", "changed=True"))
    (row,) = compare([cell], settings, Progress())["cells"]
    assert row["status"] == "failed"
    assert row["error"] == (
        "changed since the comparison began: code.qpass_plugin_mine; give the same command again"
    )
    assert not (cell.folder / "report.json").exists()
