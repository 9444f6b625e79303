"""Options and argument types that several subcommands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qpass.errors import did_you_mean

if TYPE_CHECKING:
    from qpass.plugins import Catalog

EXIT_CODES = """
\b
Exit codes:
  0    it worked
  1    a bug in qpass, or in a plugin
  2    a mistake in the command, the recipe, a plugin or a file, or a full disk
  130  interrupted
"""


class Name(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """One of a few names; another one is answered with the nearest."""

    name = "name"

    def __init__(self, what: str, known: tuple[str, ...]) -> None:
        self.what, self.known = what, known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.known:
            raise click.UsageError(f"unknown {self.what} {value!r}, {did_you_mean(value, self.known)}", ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [click.shell_completion.CompletionItem(k) for k in self.known if k.startswith(incomplete)]


class Device(click.ParamType):  # type: ignore[type-arg]
    """A device by torch's name for it. Whether it is there is found out by whoever uses it."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
            self.fail(f"{value!r} is not a device; write cpu, cuda or cuda:N", param, ctx)
        return str(value)


def key_value(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is not KEY=VALUE."""
    for value in values:
        key, equals, _ = value.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(
                f"{value!r} is not KEY=VALUE; write for example passes.brecq.iterations=200", ctx=ctx, param=param
            )
    return values


settings = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=key_value,
    help="Change one option of the recipe, after any preset. May be given several times.",
)
debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of whatever goes wrong."
)
device = click.option(
    "--device",
    type=Device(),
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Where tensors live and are computed.",
)
plugin = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also load this plugin file (.py). May be given several times.",
)
resize = click.option(
    "--resize",
    metavar="pytorch|tensorflow",
    help="How images reach Inception's size: as in pytorch-fid, or as in TensorFlow 1, ADM and torch-fidelity.  "
    "[default: pytorch]",
)
precision = click.option(
    "--precision", metavar="float32|bfloat16", help="Of the feature network's arithmetic.  [default: float32]"
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def assigned(overrides: tuple[str, ...], **flags: str | int | None) -> list[tuple[tuple[str, ...], Any]]:
    """The options of evaluators given as flags, then those given with --set, each as a path and a value."""
    from qpass.recipe.override import parse_assignment

    given = [((name,), value) for name, value in flags.items() if value is not None]
    try:
        return [*given, *map(parse_assignment, overrides)]
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from error


def catalog(plugins: tuple[Path, ...]) -> Catalog:
    """Every installed plugin and the files given. This is where torch is first imported."""
    from qpass import plugins as door

    return door.catalog(plugins)
