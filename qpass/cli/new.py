"""`qpass new`: a plugin package to start from."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import click

from qpass.cli import options
from qpass.errors import QpassError
from qpass.files import storage

KINDS = ("pass", "model", "evaluator")
TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def _kebab(ctx: click.Context, param: click.Parameter, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise click.BadParameter(
            f"{name!r} is not a name; write small letters and digits in words joined by '-', a letter first",
            ctx=ctx,
            param=param,
        )
    return name


@click.command("new", short_help="Start a plugin package of your own.", epilog=options.EXIT_CODES)
@click.argument("kind", type=options.Name("kind", KINDS), metavar="|".join(KINDS))
@click.argument("name", callback=_kebab)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder to make.  [default: qpass-NAME, here]",
)
@options.debug
def command(kind: str, name: str, out: Path | None) -> None:
    """Write a complete plugin package: small, working, tested, and yours to change.

    NAME is what recipes will call it, in kebab-case: `fold-scales`. The package is installed with pip; once it
    is, recipes find the plugin by its name, and `qpass list` shows it.

    \b
    What you get to start from:
      pass        replaces divisions by a constant with multiplications
      model       a small convolutional denoiser, with its weights in a file or seeded
      evaluator   the mean brightness of the images a model draws

    \b
    Examples:
      qpass new pass fold-scales
      qpass new evaluator sharpness --out ~/plugins/sharpness

    \b
    It writes into DIR
      pyproject.toml          how it is built, and the entry point qpass finds it by
      README.md               how to install, use and test it
      qpass_NAME.py           the plugin itself
      tests/test_NAME.py      a test of what it does

    A folder that exists is left alone, and that is an error.
    """
    folder = out or Path(f"qpass-{name}")
    with storage(folder):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise QpassError(f"{str(folder)!r} exists; name another folder with --out") from None
        written = files(kind, name)
        for path, text in written.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    for path in written:
        click.echo(str(folder / path))
    click.echo(f"\nnext: pip install -e {folder}, then `qpass show {name}`")


def files(kind: str, name: str) -> dict[str, str]:
    """The package's files by path.

    >>> list(files("pass", "fold-scales"))
    ['pyproject.toml', 'README.md', 'qpass_fold_scales.py', 'tests/test_fold_scales.py']
    """
    stem = name.replace("-", "_")
    camel, suffix = "".join(map(str.capitalize, name.split("-"))), kind.capitalize()
    words = {
        "name": name,
        "kind": kind,
        "package": f"qpass-{name}",
        "module": f"qpass_{stem}",
        # the suffix keeps the class apart from names the template imports, and from Python's own
        "cls": camel if camel.endswith(suffix) and camel != suffix else camel + suffix,
    }
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": f"{kind}.md",
        f"qpass_{stem}.py": f"{kind}.py",
        f"tests/test_{stem}.py": f"test_{kind}.py",
    }
    return {
        path: Template((TEMPLATES / f"{source}.in").read_text(encoding="utf-8")).substitute(words)
        for path, source in sources.items()
    }
