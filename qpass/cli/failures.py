"""Say what went wrong in one line, and choose the exit code: 2 the user's mistake, 1 a bug, 130 interrupted."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from importlib.metadata import entry_points

import click

from qpass.errors import QpassError, StorageError, out_of_memory

OURS = ("qpass", "qpass_passes", "qpass_models", "qpass_evaluators")
_STORAGE = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EACCES: ("permission denied", "change its permissions"),
}


def report(error: BaseException, *, debug: bool) -> int:
    """Print the error to stderr, its traceback only where asked for, and return the exit code."""
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in _STORAGE:
        error = storage(error)
    error = out_of_memory(error) or error
    if isinstance(error, click.ClickException):
        _say("error:", _usage(error))
        return error.exit_code
    if isinstance(error, QpassError):
        _say("error:", _with_notes(error))
        return error.exit_code
    hint = "" if debug else "\n  --debug shows the traceback"
    _say(f"this is a bug in {_culprit(error)}:", f"{type(error).__name__}: {_with_notes(error)}{hint}")
    return 1


def interrupted(command: str | None) -> int:
    """Only what keeps its stages can promise to go on where it stopped."""
    resumes = command in ("run", "compare", "reference")
    click.echo("interrupted; the same command resumes" if resumes else "interrupted", err=True)
    return 130


def settle_output() -> None:
    """Send what standard output cannot take nowhere, or the interpreter says so once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def broken_pipe() -> int:
    """Whoever read our output has left. Say nothing."""
    settle_output()
    return 141  # what a shell reports of a program ended by SIGPIPE


def storage(error: OSError) -> StorageError:
    """A disk's refusal as an error of ours, with the file and the way out.

    >>> str(storage(OSError(errno.ENOSPC, "No space left on device", "runs/a/x")))
    "the disk is full: 'runs/a/x'; make room, or write elsewhere with --out"
    """
    assert error.errno is not None  # or it would not have been looked up
    what, cure = _STORAGE[error.errno]
    where = f": {error.filename!r}" if error.filename else ""
    failure = StorageError(f"{what}{where}; {cure}, or write elsewhere with --out")
    for note in getattr(error, "__notes__", ()):
        failure.add_note(note)
    return failure


def _usage(error: click.ClickException) -> str:
    message = error.format_message()
    if type(error) is click.BadParameter and error.param is not None:
        name = error.param.opts[0] if isinstance(error.param, click.Option) else error.param.human_readable_name
        message = f"{name}: {error.message}"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f"\n  `{error.ctx.command_path} --help` explains the command"
    return message


def _culprit(error: BaseException) -> str:
    """Whose code failed, or asked something impossible of a library: qpass's, or the line of a plugin."""
    plugins = {entry.module.partition(".")[0] for entry in entry_points(group="qpass")}
    found = "qpass"
    for frame, line in traceback.walk_tb(error.__traceback__):
        root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if root in OURS:
            found = "qpass"
        elif root in plugins or root.startswith("qpass_plugin_"):  # the latter from a file, by --plugin
            found = f"{frame.f_code.co_filename}, line {line}"
    return found


def _with_notes(error: BaseException) -> str:
    return "\n  ".join([str(error), *getattr(error, "__notes__", ())])


def _say(head: str, text: str) -> None:
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style(head, fg='red', bold=True)} {text}", err=True, color=color)
