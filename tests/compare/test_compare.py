"""A comparison carries out its cells one by one; what ends one of them, or the whole, costs no more than that."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from qpass.compare.matrix import VARYING
from qpass.report.human import number

QPASS = Path(sys.executable).with_name("qpass")
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


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    from diffusers import DDIMScheduler, UNet2DModel

    made = Shop(folder=tmp_path_factory.mktemp("shop"))
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        UNet2DModel(
            sample_size=8, block_out_channels=(16,), norm_num_groups=8, layers_per_block=1, attention_head_dim=8,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        ).save_pretrained(made.folder / name)  # fmt: skip
        DDIMScheduler(beta_schedule="linear").save_pretrained(made.folder / name)
    model = str(made.folder / "one")
    obey = f'{{use = "obey", file = {str(made.order)!r}}}, '
    (made.folder / "plain.toml").write_text(RECIPE.format(model=model, weight="int4 channel", extra=""))
    (made.folder / "obeys.toml").write_text(RECIPE.format(model=model, weight="int8 channel", extra=obey))
    (made.folder / "obeys.py").write_text(OBEYS)
    return made


@attrs.frozen(kw_only=True)
class Done:
    """A comparison of both recipes on both models, and what it said."""

    out: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def done(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("done") / "both"
    finished = shop.compare(out, models=2)
    assert finished.returncode == 0, finished.stderr
    return Done(out=out, stdout=finished.stdout, stderr=finished.stderr)


def cells(out: Path) -> list[dict[str, Any]]:
    document = json.loads((out / "compare.json").read_text())
    assert document["schema"] == 1
    found: list[dict[str, Any]] = document["cells"]
    return found


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that equal comparisons have in common."""
    return [{key: value for key, value in row.items() if key not in VARYING} for row in rows]


def test_every_recipe_on_every_model(done: Done) -> None:
    """Four runs' folders, one cell of the document for each, and their own figures in it."""
    rows = cells(done.out)
    names = [(row["recipe"], row["model"]) for row in rows]
    assert names == [(r, m) for m in ("diffusers-one", "diffusers-two") for r in ("plain", "obeys")]
    assert [row["status"] for row in rows] == ["done"] * 4
    for row in rows:
        report = json.loads((done.out / row["folder"] / "report.json").read_text())
        assert row["metrics"] == report["metrics"]
        assert all(metric["protocol"] for metric in row["metrics"])
        assert 0 < row["seconds"] < row["total_seconds"]
        assert 100 < row["peak_memory_mb"] < 4000
        assert row["resumed"] is False
    assert len({json.dumps(row["metrics"]) for row in rows}) == 4


def test_each_original_is_asked_once(done: Done) -> None:
    """Two models are traced, sampled to calibrate on and drawn from twice, not four times."""
    assert done.stderr.count("trace diffusers") == 2
    assert done.stderr.count("calibration set: done") == 2
    assert done.stderr.count("images of the original: done") == 2
    assert done.stderr.count("images of the quantized: done") == 4


def test_progress(done: Done) -> None:
    """Which cell of how many, and from the second on how long the rest may take."""
    heads = [line for line in done.stderr.splitlines() if line.startswith("cell ")]
    assert heads[0] == "cell 1 of 4: plain on diffusers-one"
    assert heads[3].startswith("cell 4 of 4: obeys on diffusers-two, about ")


def test_tables(done: Done) -> None:
    """Terminal and markdown have a row for each original and each cell, in the order given, with the same figures."""
    lines = (done.out / "compare.md").read_text().splitlines()
    names = [tuple(word.strip() for word in line.split("|")[1:3]) for line in lines[2:8]]
    assert names == [
        (model, recipe)
        for model in ("diffusers-one", "diffusers-two")
        for recipe in ("original", "plain", "obeys")
    ]
    heads = [word.strip() for word in lines[0].split("|")]
    for head in (
        "sqnr (dB)",
        "psnr (dB)",
        "ssim",
        "packed_mb (MB)",
        "packed_ratio",
        "passes",
        "process peak (MB)",
    ):
        assert head in heads
    ratio = [line.split("|")[heads.index("packed_ratio")].strip() for line in lines[2:8]]
    assert ratio[0] == "1"
    assert float(ratio[1]) < float(ratio[2]) < 1
    for text in ratio:
        assert text in done.stdout
    assert done.stdout.endswith(f"table: {done.out / 'compare.md'}\n")


def test_a_cell_is_an_ordinary_run(shop: Shop, done: Done, tmp_path: Path) -> None:
    """`qpass run` of the same recipe, which shares nothing, leaves the same report and artifact to the byte."""
    recipe, plugin = str(shop.folder / "obeys.toml"), str(shop.folder / "obeys.py")
    command = [str(QPASS), "run", recipe, "--plugin", plugin, "--out", str(tmp_path / "run")]
    subprocess.run(
        [*command, "--set", f"model.path={shop.folder / 'two'}"], check=True, capture_output=True, env=ENVIRONMENT
    )
    for name in ("report.json", "recipe.toml", "artifact/qpass.json", "artifact/model.safetensors"):
        cell = done.out / "obeys-diffusers-two" / name
        assert cell.read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_run_for_each_seed(shop: Shop, tmp_path: Path) -> None:
    """Each in its folder, with images of its own; the table has the mean and the deviation of both."""
    out = tmp_path / "seeds"
    command = [*shop.command(out, recipes="plain"), "--seed", "1", "--seed", "2"]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    rows = cells(out)
    assert [(row["seed"], row["folder"]) for row in rows] == [(n, f"plain-diffusers-one-seed{n}") for n in (1, 2)]
    one, two = (next(m["value"] for m in row["metrics"] if m["name"] == "psnr") for row in rows)
    assert one != two
    mean, deviation = (one + two) / 2, abs(one - two) / 2**0.5
    assert f"| {number(mean, 'dB')} ± {number(deviation, 'dB')} |" in (out / "compare.md").read_text()


def test_the_same_again_runs_nothing(shop: Shop, done: Done, tmp_path: Path) -> None:
    """Every cell is kept: no file in a cell is touched, and the document stays the same, seconds and all."""
    out = tmp_path / "both"
    shutil.copytree(done.out, out)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*-*/**/*")}
    again = shop.compare(out, models=2)
    assert again.returncode == 0
    assert again.stderr.count("kept: finished earlier under the same conditions") == 4
    assert "trace" not in again.stderr
    assert {file: file.stat().st_mtime_ns for file in out.glob("*-*/**/*")} == before
    assert cells(out) == cells(done.out)


@pytest.mark.parametrize(
    ("order", "error"),
    [
        (
            "fail",
            "a bug in qpass or a plugin: RuntimeError: as it was told to; in pass 'obey' (number 2); passes that",
        ),
        ("die", "the process was ended by signal 9, which is what the system does where memory runs out"),
    ],
)
def test_a_cell_that_fails(shop: Shop, done: Done, tmp_path: Path, order: str, error: str) -> None:
    """Its error is one line in every table, the next cell is carried out, and tried again it alone is."""
    shop.order.write_text(order)
    try:
        failed = shop.compare(tmp_path / "out", "obeys plain")
    finally:
        shop.order.unlink()
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].endswith("1 of 2 runs failed; the same command tries them again")
    first, second = cells(tmp_path / "out")
    assert (first["status"], second["status"]) == ("failed", "done")
    assert first["error"].startswith(error)
    assert first["metrics"] == []
    assert lasting([second]) == lasting(cells(done.out)[:1])
    note = f"- obeys on diffusers-one failed: {error}"
    assert any(line.startswith(note) for line in (tmp_path / "out" / "compare.md").read_text().splitlines())
    trace = tmp_path / "out" / "obeys-diffusers-one" / "error.txt"
    assert trace.exists() == (order == "fail")

    again = shop.compare(tmp_path / "out", "obeys plain")
    assert again.returncode == 0
    assert again.stderr.count("kept: finished earlier") == 1
    assert lasting(cells(tmp_path / "out")) == lasting([cells(done.out)[1], cells(done.out)[0]])
    assert not trace.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_comparison_that_is_ended(shop: Shop, done: Done, tmp_path: Path, number: int) -> None:
    """Its cell's process leaves with it; started again, finished cells are kept and the half-done one goes on."""
    out, log = tmp_path / "out", tmp_path / "log"
    shop.order.write_text("wait")
    try:
        with (
            log.open("w") as said,
            subprocess.Popen(
                shop.command(out), stdout=said, stderr=said, env=ENVIRONMENT, preexec_fn=interruptible
            ) as process,
        ):
            until(lambda: "waiting" in log.read_text(), "the second cell never came to its pass")
            process.send_signal(number)
            try:
                process.wait(120)
            finally:
                process.kill()
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        # the pass still has its order to wait, so what gives up the lock is the end of its process
        until(lambda: free(out / "obeys-diffusers-one" / "stages" / ".lock"), "the cell's process lives on")
    finally:
        shop.order.unlink()
    again = shop.compare(out)
    assert again.returncode == 0
    assert again.stderr.count("kept: finished earlier") == 1
    assert "1. assign: kept from an earlier run" in again.stderr
    assert "trace diffusers" not in again.stderr
    assert lasting(cells(out)) == lasting(cells(done.out)[:2])
    assert [row["resumed"] for row in cells(out)] == [False, True]
    assert [row["resumed_passes"] for row in cells(out)] == [[], ["obey"]]
    assert "obeys on diffusers-one was interrupted: its process peak" in (out / "compare.md").read_text()
    assert not list(out.rglob(".tmp-qpass-*"))


def test_one_comparison_at_a_time(shop: Shop, tmp_path: Path) -> None:
    """While another is at work in the folder, a second is refused."""
    with (tmp_path / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        refused = shop.compare(tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: another comparison is at work in '{tmp_path}'; wait for it, or")


def interruptible() -> None:
    """A shell's background job ignores Ctrl-C, and so would everything that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(true: Any, otherwise: str, seconds: float = 120) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, otherwise
        time.sleep(0.05)


def free(lock: Path) -> bool:
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
