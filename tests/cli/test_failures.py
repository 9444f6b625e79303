"""Whatever goes wrong is one line on stderr and an exit code: 2 the user's mistake, 1 ours."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import qpass
from qpass.cli import failures, main
from qpass.cli import list as listing
from qpass.errors import RecipeError


def fail(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `qpass list recipes` raise."""

    def on_shelf() -> None:
        raise error

    monkeypatch.setattr(listing, "on_shelf", on_shelf)


def test_an_unknown_command_gives_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """A typo is answered with the command that was meant, and with where to look."""
    assert main(["smaple"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown command 'smaple', did you mean 'sample'?\n  `qpass --help` explains the command\n"
    )


def test_an_unknown_kind_gives_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """So is the typo in a kind; the page to look at is the subcommand's."""
    assert main(["list", "modles"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown kind 'modles', did you mean 'models'?\n  `qpass list --help` explains the command\n"
    )


def test_an_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    """click's own usage errors have the same shape and exit code."""
    assert main(["list", "passes", "--jsno"]) == 2
    assert capsys.readouterr().err.startswith("error: No such option '--jsno'")


def test_memory_that_ran_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's error and torch's own, which is a plain RuntimeError, are no bug, and have a way out."""
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**52)
    for error in (MemoryError(), torchs.value):
        fail(error, monkeypatch)
        assert main(["list", "recipes"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: memory ran out")
        assert "--set sampling.batch=8" in said


def test_every_mistake_of_a_recipe_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of several lines is printed whole, with the notes added on its way."""
    error = RecipeError(["one", "two"], "r.toml")
    error.add_note("in pass 'x'")
    fail(error, monkeypatch)
    assert main(["list", "recipes"]) == 2
    assert capsys.readouterr().err == "error: r.toml: 2 mistakes\n  1. one\n  2. two\n  in pass 'x'\n"


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Any other exception exits with 1, with its type and message and without a traceback."""
    fail(ZeroDivisionError("division by zero"), monkeypatch)
    assert main(["list", "recipes"]) == 1
    err = capsys.readouterr().err
    assert err == "this is a bug in qpass: ZeroDivisionError: division by zero\n  --debug shows the traceback\n"


def test_a_plugins_bug_is_said_to_be_the_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    """By file and line, where it is its code that failed; code of ours that it called is ours."""
    source = "def fail():\n    return 1 / 0\n\ndef call(ours):\n    return ours()\n"
    plugin: dict[str, Any] = {"__name__": "qpass_plugin_mine"}
    exec(compile(source, "mine.py", "exec"), plugin)
    for function, arguments, culprit in (
        ("fail", (), "mine.py, line 2"),
        ("call", (lambda: failures.storage(OSError()),), "qpass"),
    ):
        with pytest.raises((ZeroDivisionError, AssertionError)) as caught:
            plugin[function](*arguments)
        assert failures.report(caught.value, debug=False) == 1
        assert capsys.readouterr().err.startswith(f"this is a bug in {culprit}: ")


@pytest.mark.parametrize("args", [["--debug", "list", "recipes"], ["list", "recipes", "--debug"]])
def test_debug_shows_the_traceback(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--debug works before and after the subcommand, and for the user's mistakes too."""
    fail(RecipeError("wrong", "r.toml"), monkeypatch)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: r.toml: wrong\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_no_bug(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is named and the exit code is 2."""
    fail(OSError(code, "whatever", "runs/x/model.safetensors"), monkeypatch)
    assert main(["list", "recipes"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "'runs/x/model.safetensors'" in err


def test_interrupting_what_cannot_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a run promises to resume."""
    fail(KeyboardInterrupt(), monkeypatch)
    assert main(["list", "recipes"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_behind_stdout() -> None:
    """Output that cannot be written is an error, said once."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qpass", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the disk is full")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["--help"], ["list", "recipes", "--json"]], ids=" ".join)
def test_a_reader_who_leaves(args: list[str]) -> None:
    """A closed pipe ends the command without a word."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qpass", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


def test_no_colour_into_a_pipe() -> None:
    """stderr holds plain text where it is no terminal."""
    done = subprocess.run([sys.executable, "-m", "qpass", "lst"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the installed distribution."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qpass {qpass.__version__}\n"


def test_a_plugin_file_that_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the file raised is said, with the file's name."""
    file = tmp_path / "bad.py"
    file.write_text("raise RuntimeError('no licence')\n")
    assert main(["list", "passes", "--plugin", str(file)]) == 2
    assert capsys.readouterr().err == f"error: plugin {str(file)!r} cannot be loaded: RuntimeError: no licence\n"


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("None", "register_passes must return a sequence of classes, not None"),
        ("[int]", "register_passes must return subclasses of qpass.Pass, not <class 'int'>"),
        ("[type('Half', (qpass.Pass,), {'name': 'half'})]", "Half does not define run"),
    ],
)
def test_a_plugin_that_returns_a_wrong_thing(
    returned: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rule it broke is said, with the file's name."""
    file = tmp_path / "wrong.py"
    file.write_text(f"import qpass\n@qpass.hookimpl\ndef register_passes():\n    return {returned}\n")
    assert main(["list", "passes", "--plugin", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: plugin {str(file)!r}: ")
    assert reason in err


def test_a_plugin_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The path is named."""
    assert main(["list", "passes", "--plugin", "nowhere.py"]) == 2
    assert "error: --plugin: File 'nowhere.py' does not exist." in capsys.readouterr().err
