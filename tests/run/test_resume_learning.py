"""Killed while a block is being learned, a run goes on from the last finished block, and ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

QPASS = Path(sys.executable).with_name("qpass")
ITERATIONS = 10  # of every block
PASSES = f"""
[[passes]]
use = "assign"
weight = "int4 channel"
input = "int6 tensor"
[[passes]]
use = "brecq"
iterations = {ITERATIONS}
settle = false
[[passes]]
use = "learn-steps"
iterations = {ITERATIONS}
[[passes]]
use = "simulate"
[[evaluators]]
use = "size"
"""

# A process that has imported everything forks one child after another; each is killed once so many blocks are finished
# and so many steps of the next have been taken.
KILLED = """
import os, pathlib, signal, sys
import torch, qpass.cli
from torch.optim.optimizer import register_optimizer_step_post_hook
torch.set_num_threads(1)
for line in sys.stdin:
    out, done, within = line.split()
    kept, count = pathlib.Path(out) / "stages" / "reconstruction", 0
    def hook(optimizer, args, kwargs):
        global count
        count += len(list(kept.glob("*/*.safetensors"))) == int(done)
        if count == int(within):
            os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        register_optimizer_step_post_hook(hook)
        os._exit(qpass.cli.main([*sys.argv[1:], out]))
    _, status = os.waitpid(child, 0)
    print("status", os.waitstatus_to_exitcode(status), flush=True)
"""


def exact(out: Path) -> dict[str, bytes]:
    """Every byte that equal runs share."""
    files = [out / "report.json", *sorted((out / "artifact").iterdir())]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def finished(out: Path) -> dict[Path, int]:
    """The blocks that a run has kept, and when each was written."""
    return {file: file.stat().st_mtime_ns for file in (out / "stages" / "reconstruction").glob("*/*.safetensors")}


def spilt(out: Path) -> list[Path]:
    """Rows that lie on disk."""
    return list(out.rglob("*.bin"))


@pytest.fixture(scope="module")
def learning(recipe: Path) -> Path:
    """The tiny recipe, with passes that learn and no memory to keep rows in."""
    text = recipe.read_text()
    start = text.index("[[passes]]")
    file = recipe.with_name("learning.toml")
    file.write_text('memory_budget = "10KB"\n' + text[:start] + PASSES)
    return file


def test_killed_in_the_middle_of_a_block(learning: Path, tmp_path: Path) -> None:
    """Three times, in blocks of both passes that learn; finished blocks stay, the bytes are those of a whole run."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    source = random.Random(0)

    with subprocess.Popen(
        [sys.executable, "-c", KILLED, "run", str(learning), "--out"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def attempt(out: Path, done: int, within: int) -> int:
            print(out, done, within, file=process.stdin, flush=True)
            return next(int(line.split()[1]) for line in process.stdout if line.startswith("status"))

        assert attempt(whole, -1, 1) == 0
        blocks = len(finished(whole))
        assert blocks > 10
        kept: dict[Path, int] = {}
        for done in (2, 5, blocks - 3):
            assert attempt(broken, done, source.randrange(1, ITERATIONS)) == -signal.SIGKILL
            assert len(finished(broken)) == done
            assert finished(broken).items() >= kept.items()
            kept = finished(broken)
            assert spilt(broken)  # it was killed while a block's rows lay in files
        assert attempt(broken, -1, 1) == 0
        process.stdin.close()
    assert len(finished(broken)) == blocks
    assert finished(broken).items() >= kept.items()
    assert exact(broken) == exact(whole)
    assert not spilt(broken)
    assert not list(broken.rglob(".tmp-*"))


@pytest.mark.slow
def test_the_command_killed_while_blocks_learn(tmp_path: Path) -> None:
    """`qpass run brecq-w4a8` on `cifar10-unet`, shortened, killed soon after a block was kept, four times over."""
    command = [
        str(QPASS), "run", "brecq-w4a8", "--set", "calibration.samples=16", "--set", "sampling.steps=10",
        "--set", "passes.brecq.iterations=40", "--set", "passes.learn-steps.iterations=20",
        "--set", "evaluators.drift.samples=4", "--set", "evaluators.drift.rows=4",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    out, source = tmp_path / "killed", random.Random(0)
    for more in (3, 8, 11, 9):
        before = len(finished(out))
        with subprocess.Popen(
            [*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while len(finished(out)) < before + more:
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(source.uniform(0, 2))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    subprocess.run([*command, "--out", str(out)], check=True, env=environment, capture_output=True)
    assert len(finished(out)) == len(finished(tmp_path / "whole"))
    assert exact(out) == exact(tmp_path / "whole")
    assert not list(out.rglob(".tmp-*"))
