"""Equal commands give equal bytes, however often they were interrupted; a change is named and redone from there."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qpass.plugins import catalog
from qpass.recipe import read
from qpass.run.fingerprint import facts, ground
from qpass.run.folder import RunFolder

Command = Callable[..., int]
QPASS = Path(sys.executable).with_name("qpass")


def exact(out: Path) -> dict[str, bytes]:
    """Every byte that equal runs share."""
    files = [out / "report.json", out / "recipe.toml", *sorted((out / "artifact").iterdir())]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def unfinished(out: Path) -> list[Path]:
    """What is neither whole nor gone."""
    return [path for path in out.rglob("*") if path.name.startswith(".tmp-")]


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    from qpass.cli import main

    out = tmp_path_factory.mktemp("done") / "run"
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    return out


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of that run, in another folder."""
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def test_equal_commands_equal_bytes(run: Command, done: Path, tmp_path: Path) -> None:
    """The same recipe in another folder gives the same report and artifact, to the byte."""
    assert run(tmp_path / "other") == 0
    assert exact(tmp_path / "other") == exact(done)
    assert not unfinished(tmp_path)


def test_the_same_command_again_changes_nothing(
    run: Command, again: Path, done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a finished folder every stage and every observation is kept, and the bytes stay."""
    stages = {file: file.stat().st_mtime_ns for file in (again / "stages").rglob("*.safetensors")}
    assert run(again) == 0
    said = capfd.readouterr().err
    assert "1. assign: kept from an earlier run" in said
    assert "2. simulate: kept from an earlier run" in said
    assert "changed since" not in said
    assert exact(again) == exact(done)
    assert {file: file.stat().st_mtime_ns for file in (again / "stages").rglob("*.safetensors")} == stages


@pytest.mark.parametrize(
    ("option", "named", "kept"),
    [
        ("seed=4", "seed", []),
        ("passes.simulate.rows=7", "passes.simulate.rows", ["assign"]),
        ("evaluators.drift.rows=1", "evaluators.drift.rows", ["assign", "simulate"]),
    ],
)
def test_a_change_is_named_and_redone_from_there(
    run: Command, again: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    option: str, named: str, kept: list[str],
) -> None:  # fmt: skip
    """What changed is named as `--set` names it; earlier passes are kept; the bytes are those of a fresh folder."""
    assert run(again, "--set", option) == 0
    said = capfd.readouterr().err
    assert f"changed since the last run in {again}: {named}; redoing what depends on it" in said
    assert [word for word in ("assign", "simulate") if f"{word}: kept from an earlier run" in said] == kept
    assert run(tmp_path / "fresh", "--set", option) == 0
    assert exact(again) == exact(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("sampling.steps=5", ["sampling.steps"]),
        ("calibration.samples=5", ["calibration.samples"]),
        ("model.dtype=bfloat16", ["model.dtype"]),
        ("model.scheduler.beta_schedule=scaled_linear", ["model.scheduler.beta_schedule"]),
        ("passes.assign.keep=['conv_in']", ["passes.assign.keep"]),
        ("passes.simulate.input=percentile", ["passes.simulate.input.q", "passes.simulate.input.use"]),
        ("memory_budget=3GB", ["memory_budget"]),
    ],
)
def test_every_change_has_a_name(recipe: Path, tmp_path: Path, option: str, named: list[str]) -> None:
    """Any option of any section is named when it changes, and is no longer news the next time."""
    known = catalog()
    folder = RunFolder(path=tmp_path, catalog=known)
    before, after = (read(recipe, catalog=known, overrides=overrides) for overrides in ((), (option,)))
    assert folder.changed(facts(before, ground(before, "cpu"))) == []
    assert folder.changed(facts(after, ground(after, "cpu"))) == named
    assert folder.changed(facts(after, ground(after, "cpu"))) == []


def test_another_model_is_named(
    run: Command, again: Path, recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other weights under the same path are noticed, and everything is redone."""
    file = recipe.parent / "model" / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    try:
        weights = load_file(file)
        weights["conv_in.bias"] += 1
        save_file(weights, file, metadata={"format": "pt"})
        assert run(again) == 0
    finally:
        file.write_bytes(before)
    said = capfd.readouterr().err
    assert f"changed since the last run in {again}: model.weights;" in said
    assert "kept from an earlier run" not in said


def damage(file: Path, how: str) -> None:
    raw = file.read_bytes()
    if how == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "flip":
        middle = len(raw) // 2
        file.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_damage_is_redone(run: Command, again: Path, done: Path, how: str) -> None:
    """With any files of a finished folder damaged, its last stage among them, the same command gives the same bytes."""
    source = random.Random(how)
    files = sorted(p for p in again.rglob("*") if p.is_file() and p.name != ".lock")
    assert len(files) > 15
    for file in source.sample(files, 3):
        damage(file, how)
    # the last stage too, so that the passes and the calibration set are needed again
    for file in [*again.glob("stages/02-*/model.safetensors"), *again.glob("stages/analyses/*.safetensors")]:
        if file.exists():
            damage(file, how)
    assert run(again) == 0
    assert exact(again) == exact(done)


def test_what_a_killed_run_left_is_swept(run: Command, again: Path, done: Path) -> None:
    """Half-written files and folders, nested ones too, are gone after the next run; files of others are not."""
    for place in (again, again / "stages", again / "stages" / "observations"):
        (place / ".tmp-qpass-x").mkdir()
        (place / ".tmp-qpass-x" / ".tmp-qpass-model.safetensors").write_bytes(b"half")
        (place / ".tmp-qpass-y").write_bytes(b"half")
    (again / ".tmp-mine").write_bytes(b"not ours")
    assert run(again) == 0
    assert unfinished(again) == [again / ".tmp-mine"]
    assert exact(again) == exact(done)


# A process that has carried out the run once, and so imported everything, forks one child after another; each is
# killed before its n-th operation on a file, as the audit events of Python count them.
KILLED = """
import os, signal, sys
import torch, qpass.cli
torch.set_num_threads(1)
argv, out = sys.argv[2:], sys.argv[1]
assert qpass.cli.main([*argv[:-1], argv[-1] + "-warm"]) == 0
FILES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "tempfile.mkstemp"}
for line in sys.stdin:
    limit, count = int(line), 0
    def hook(event, args):
        global count
        if event in FILES and args and out in str(args[0]):
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        sys.addaudithook(hook)
        code = qpass.cli.main(argv)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print("status", os.waitstatus_to_exitcode(status), flush=True)
"""


def test_killed_between_any_two_operations(recipe: Path, done: Path, tmp_path: Path) -> None:
    """Killed again and again before a random operation on its files, a run ends with the bytes of a whole one."""
    out = tmp_path / "run"
    source = random.Random(0)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out), "run", str(recipe), "--out", str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def attempt(limit: int) -> int:
            print(limit, file=process.stdin, flush=True)
            return next(int(line.split()[1]) for line in process.stdout if line.startswith("status"))

        killed = sum(attempt(source.randint(1, 60)) == -signal.SIGKILL for _ in range(7))
        assert attempt(0) == 0
        assert exact(out) == exact(done)
        assert not unfinished(out)
        # and a finished folder survives a kill as well as a new one
        killed += attempt(source.randint(1, 20)) == -signal.SIGKILL
        assert attempt(0) == 0
        process.stdin.close()
    assert killed == 8
    assert exact(out) == exact(done)
    assert not unfinished(out)


def test_one_run_at_a_time(run: Command, again: Path, done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """While another process is at work in the folder, a second run is refused with exit code 2, and harms nothing."""
    import fcntl

    with (again / "stages" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert run(again) == 2
    said = capfd.readouterr().err
    assert f"error: another run is at work in '{again}'; wait for it, or choose another folder with --out" in said
    assert exact(again) == exact(done)
    assert run(again) == 0


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """`w8a8` on `cifar10-unet`, killed at 20 random moments, ends with the bytes of a run that nobody disturbed."""
    command = [
        str(QPASS), "run", "w8a8", "--set", "calibration.samples=16", "--set", "sampling.steps=10",
        "--set", "evaluators.drift.samples=8", "--set", "evaluators.drift.rows=4",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    length = time.monotonic() - started
    source = random.Random(0)
    killed = tries = 0
    while killed < 20 and tries < 60:
        tries += 1
        with subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                process.wait(source.uniform(0, length / 3))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        if process.returncode == 0:  # it is done: begin anew
            assert exact(tmp_path / "killed") == exact(tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    assert killed == 20
    assert exact(tmp_path / "killed") == exact(tmp_path / "whole")
    assert not unfinished(tmp_path)
    assert json.loads((tmp_path / "killed" / "report.json").read_text())["records"]


def test_another_memory_budget(run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What does not fit lies on disk in half precision, so nothing made under another budget is kept."""
    assert run(tmp_path / "run", "--set", "memory_budget=1GB") == 0
    capfd.readouterr()
    assert run(tmp_path / "run", "--set", "memory_budget=2GB") == 0
    said = capfd.readouterr().err
    assert "memory_budget; redoing what depends on it" in said
    assert "kept from an earlier run" not in said
    assert run(tmp_path / "run", "--set", "memory_budget=2048MB") == 0
    assert "1. assign: kept from an earlier run" in capfd.readouterr().err
