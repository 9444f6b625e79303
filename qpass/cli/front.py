"""The front page: finds the subcommand, carries it out, and turns what went wrong into an exit code.

It is not in `__init__.py`, where the subcommand modules would hide the builtins they are named like.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from qpass.cli import failures, options
from qpass.errors import did_you_mean

COMMANDS = ("run", "compare", "list", "show", "sample", "measure", "reference", "new")


class Subcommands(click.Group):
    """Finds each subcommand as `command` in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"qpass.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            ctx.fail(f"unknown command {args[0]!r}, {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> Any:
    if asked and not ctx.resilient_parsing:
        from qpass import __version__

        click.echo(f"qpass {__version__}")
        ctx.exit()


@click.group(
    cls=Subcommands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=options.EXIT_CODES,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
@options.debug
@click.pass_context
def app(ctx: click.Context) -> None:
    """Quantize diffusion models after training, and see what it cost.

    A recipe (a TOML file) names a model, a list of passes and what to measure. `qpass run` carries it out and
    leaves a folder with the smaller model and a report of how much quality it kept.

    \b
    A first look round:
      qpass list recipes          the recipes that ship
      qpass show w4a4             what one of them does
      qpass run w4a4              do it; interrupted, the same command resumes
      qpass compare w8a8 w4a4 --out runs/bits
      qpass sample runs/... --count 64 --out grid.png
      qpass measure my-images/ --against cifar10-train --metrics fid,sfid

    \b
    Your own method:
      qpass new pass my-method         a plugin package to start from
      qpass run r.toml --plugin my_pass.py

    \b
    Completion of commands with the Tab key, in bash:
      eval "$(_QPASS_COMPLETE=bash_source qpass)"
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    if instruction := os.environ.get("_QPASS_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(app, {}, "qpass", "_QPASS_COMPLETE", instruction)
    ctx: click.Context | None = None
    try:
        ctx = app.make_context("qpass", args)
        with ctx:
            app.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        return failures.interrupted(ctx.invoked_subcommand if ctx else None)
    except BrokenPipeError:
        return failures.broken_pipe()
    except Exception as error:
        failures.settle_output()
        return failures.report(error, debug=debug)
    return 0
