"""`qpass list`: what is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from qpass.cli import describe, options, page, recipes
from qpass.errors import RecipeError
from qpass.plugins import Broken
from qpass.recipes import FOLDER, shipped

KINDS = ("passes", "models", "evaluators", "quantizers", "analyses", "recipes")


@click.command("list", short_help="List what is installed.", epilog=options.EXIT_CODES)
@click.argument("kind", type=options.Name("kind", KINDS), metavar="|".join(KINDS))
@options.plugin
@options.as_json
@options.debug
def command(kind: str, plugins: tuple[Path, ...], as_json: bool) -> None:
    """List what a recipe may name: each with a sentence, and the package it comes from.

    Plugins that could not be loaded are listed below, with their reasons. A recipe is described by the comment
    its file opens with; one that is called METHOD-wXaY can be named with any other bits from 2 to 8 as well.

    \b
    Examples:
      qpass list passes
      qpass list recipes
      qpass list evaluators --plugin my_evaluator.py
      qpass list passes --json | jq -r '.items[].name'

    \b
    JSON holds
      kind     what was asked for
      items    name, summary and package of each; for recipes also path and description
      broken   plugin and reason of each
    """
    items, broken = on_shelf() if kind == "recipes" else installed(kind, plugins)
    if as_json:
        click.echo(
            json.dumps({"kind": kind, "items": items, "broken": [attrs.asdict(b) for b in broken]}, indent=2)
        )
        return
    sheet = page.formatter()
    if items:
        sheet.write_dl([(i["name"], f"{i['summary']} [{i['package']}]".lstrip()) for i in items])
    else:
        sheet.write(f"no {kind} are installed\n")
    click.echo(sheet.getvalue() + page.broken(broken), nl=False)


def installed(kind: str, plugins: tuple[Path, ...]) -> tuple[list[dict[str, Any]], Sequence[Broken]]:
    """Classes of one kind, and the plugins that failed."""
    catalog = options.catalog(plugins)
    items = [
        {
            "name": name,
            "summary": describe.first_sentence(describe.docstring(cls)),
            "package": describe.origin(cls),
        }
        for name, cls in catalog.classes[kind].items()
    ]
    return items, catalog.broken


def on_shelf(shelf: Path = FOLDER) -> tuple[list[dict[str, Any]], Sequence[Broken]]:
    """Recipes that ship, and those among them that cannot be read."""
    items, broken = [], []
    for path in shipped(shelf).values():
        try:
            recipe = recipes.read(path)
        except RecipeError as error:
            broken.append(Broken(plugin=path.name, reason=error.problems[0]))
            continue
        items.append(
            {
                "name": recipe.name,
                "summary": recipe.summary,
                "package": "qpass",
                "path": str(path),
                "description": recipe.description,
            }
        )
    return items, broken
