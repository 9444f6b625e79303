"""Recipes and models to compare, one of them with a pass that does as it is told, and the comparison of them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from qpass.compare.matrix import VARYING

QPASS = Path(sys.executable).with_name("qpass")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
RECIPE = """
seed = 3
model = {{use = "diffusers", path = {model!r}}}
sampling = {{steps = 3}}
calibration = {{use = "uniform-steps", samples = 4, steps = 3}}
passes = [{{use = "assign", weight = "{weight}"}}, {extra}{{use = "simulate", weight = "absmax", rows = 8}}]
evaluators = [{{use = "drift", samples = 4, rows = 2}}, "size"]
"""
OBEYS = '''
import os, signal, time
from pathlib import Path
import attrs, qpass

@attrs.frozen(kw_only=True)
class Obey(qpass.Pass):
    """Does what its file says: waits, fails or dies; nothing where there is none."""

    name = "obey"
    file: str = attrs.field(metadata={"help": "a file"})

    def run(self, graph, ctx):
        file = Path(self.file)
        order = file.read_text() if file.exists() else ""
        if order == "fail":
            raise RuntimeError("as it was told\\nto")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while order == "wait" and file.exists():
            ctx.progress.say("waiting")
            time.sleep(0.1)
        return qpass.PassResult(graph=graph, changed=False)

@qpass.hookimpl
def register_passes():
    return [Obey]
'''


@attrs.frozen(kw_only=True)
class Shop:
    """Two recipes, `plain` and `obeys`, the second with a pass that does what a file says; and two models."""

    folder: Path

    @property
    def order(self) -> Path:
        return self.folder / "order"

    def models(self) -> list[str]:
        return [f"diffusers:path={self.folder / name}" for name in ("one", "two")]

    def command(self, out: Path, recipes: str = "plain obeys", models: int = 1) -> list[str]:
        files = [str(self.folder / f"{name}.toml") for name in recipes.split()]
        chosen = [word for model in self.models()[:models] for word in ("--model", model)]
        plugin = ["--plugin", str(self.folder / "obeys.py")]
        return [str(QPASS), "compare", *files, *chosen, *plugin, "--out", str(out)]

    def compare(
        self, out: Path, recipes: str = "plain obeys", models: int = 1
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(out, recipes, models)
        return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


@attrs.frozen(kw_only=True)
class Done:
    """A comparison of both recipes on both models, and what it said."""

    out: Path
    stdout: str
    stderr: str


def cells(out: Path) -> list[dict[str, Any]]:
    document = json.loads((out / "compare.json").read_text())
    assert document["schema"] == 1
    found: list[dict[str, Any]] = document["cells"]
    return found


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that equal comparisons have in common."""
    return [{key: value for key, value in row.items() if key not in VARYING} for row in rows]
