"""What ends a cell of a comparison, or the whole of it, costs no more than that."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from shop import ENVIRONMENT, Done, Shop, cells, lasting


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
