"""What a comparison makes of cells that cannot even be looked at."""

from __future__ import annotations

import sys

import pytest

from qpass.compare.matrix import Settings, compare
from qpass.compare.plan import plan
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
