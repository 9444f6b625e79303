"""`qpass show`: everything about one name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import click

from qpass.cli import describe, options, page, recipes
from qpass.errors import QpassError, did_you_mean
from qpass.plugins import SINGULAR, Catalog
from qpass.recipes import FOLDER, bits, shipped, sibling

# how a recipe's text takes each kind into use
USE = {
    "passes": '[[passes]] use = "{}"',
    "models": '[model] use = "{}"',
    "evaluators": '[[evaluators]] use = "{}"',
    "analyses": '[calibration] use = "{}"',
    "sections": "[{}]",
}


@click.command("show", short_help="Show the options of a plugin, or a recipe.", epilog=options.EXIT_CODES)
@click.argument("name", metavar="NAME|RECIPE", shell_complete=recipes.complete)
@click.option("--preset", metavar="NAME", help="Show the recipe with its [presets.NAME] applied.")
@options.settings
@options.plugin
@options.as_json
@options.debug
def command(
    name: str, preset: str | None, overrides: tuple[str, ...], plugins: tuple[Path, ...], as_json: bool
) -> None:
    """Show what a name means.

    Of a pass, model, evaluator, quantizer or analysis: what it does, and each option with its type, default,
    meaning and valid values; of a pass also what it needs of the passes before it, and what it provides.
    `sampling` shows the options of the recipe's section of that name. Where several kinds have the name, all of
    them are shown.

    Of a recipe, by name or path: every option spelt out, as TOML that can be run, with a preset and changes
    applied where these are given. A recipe with mistakes is answered with all of them, so this also checks one
    without running it.

    \b
    Examples:
      qpass show assign
      qpass show w4a4 > mine.toml
      qpass show brecq-w4a4 --preset fast --set passes.brecq.iterations=500
      qpass show sampling
      qpass show my-pass --plugin my_pass.py --json

    JSON is a list, as a name may mean several things.
    """
    entries = find(name, plugins, Changes(preset=preset, overrides=overrides))
    if as_json:
        click.echo(json.dumps(entries, indent=2))
    else:
        click.echo("\n".join(map(render, entries)), nl=False)


@attrs.frozen(kw_only=True)
class Changes:
    """What a recipe is shown with: a preset, and options of other values."""

    preset: str | None = None
    overrides: tuple[str, ...] = ()


NONE = Changes()


def find(
    name: str, plugins: tuple[Path, ...], changes: Changes = NONE, shelf: Path = FOLDER
) -> list[dict[str, Any]]:
    """Everything of that name, only a recipe where there are changes; a `QpassError` where there is nothing."""
    catalog = options.catalog(plugins)
    if recipes.is_path(name):
        return [recipe_entry(Path(name), catalog, changes)]
    kinds = [kind for kind in SINGULAR if kind != "kernels"]
    entries = [
        class_entry(kind, name, catalog.classes[kind][name]) for kind in kinds if name in catalog.classes[kind]
    ]
    if name in SECTIONS:
        entries.append(section_entry(name))
    if name in (files := shipped(shelf)):
        entries.append(recipe_entry(files[name], catalog, changes))
    elif other := sibling(name, shelf):
        entries.append(recipe_entry(other, catalog, changes, name))
    if not entries:
        raise QpassError(_nothing(name, catalog, (*SECTIONS, *files)))
    if changes == NONE:
        return entries
    if not (found := [entry for entry in entries if entry["kind"] == "recipe"]):
        are = " and a ".join(entry["kind"] for entry in entries)
        raise QpassError(f"{name!r} is a {are}, and --preset and --set change recipes; leave them out")
    return found


SECTIONS = ("sampling",)


def section_entry(name: str) -> dict[str, Any]:
    """A section of the recipe whose options are the core's own."""
    from qpass.sampling import Sampling

    return class_entry("sections", name, Sampling)


def class_entry(kind: str, name: str, cls: type) -> dict[str, Any]:
    """A plugin class as plain data."""
    return {
        "kind": SINGULAR.get(kind, "section"),
        "name": name,
        "package": describe.origin(cls),
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "use": USE.get(kind, "").format(name),
        "doc": describe.docstring(cls),
        "facts": describe.facts(kind, cls),
        "options": [{**attrs.asdict(o), "required": o.required} for o in describe.options(cls)],
    }


def recipe_entry(path: Path, catalog: Catalog, changes: Changes = NONE, name: str | None = None) -> dict[str, Any]:
    """A recipe with every option spelt out, as plain data; a `RecipeError` lists every mistake in it.

    With a name, it is the one of that name that is made from the file at other bits.
    """
    from qpass.recipe import read

    recipe = read(name or str(path), catalog=catalog, preset=changes.preset, overrides=changes.overrides)
    file = recipes.read(path)
    return {
        "kind": "recipe",
        "name": name or file.name,
        "path": str(path),
        "description": _at_bits(file.description, name),
        "preset": changes.preset,
        "presets": sorted(file.data.get("presets", {})),
        "notes": list(recipe.notes),
        "text": recipe.toml(),
    }


def render(entry: dict[str, Any]) -> str:
    """One entry as a page of text."""
    sheet = page.formatter()
    if entry["kind"] == "recipe":
        return _recipe_page(entry)
    sheet.write(f"{entry['kind']} {entry['name']} [{entry['package']}]\n")
    if entry["use"]:
        sheet.write(f"  {entry['use']}\n")
    sheet.write(f"\n{entry['doc'] or 'Its author has not described it.'}\n")
    if entry["facts"]:
        sheet.write_paragraph()
        sheet.write_dl([(fact, _words(value)) for fact, value in entry["facts"].items()])
    if entry["options"]:
        with sheet.section("Options"):
            sheet.write_dl([(_head(option), _meaning(option)) for option in entry["options"]])
    else:
        sheet.write("\nIt has no options.\n")
    return sheet.getvalue()


def _recipe_page(entry: dict[str, Any]) -> str:
    """TOML that can be run; whatever else there is to say stands in comments."""
    lines = [entry["description"], f"recipe {entry['name']}: {entry['path']}", *entry["notes"]]
    if entry["preset"]:
        lines.append(f"with the preset {entry['preset']}")
    elif entry["presets"]:
        lines.append(f"presets, not applied here: {', '.join(entry['presets'])}")
    return "".join(f"# {line}\n" for line in lines if line) + f"\n{entry['text']}"


def _at_bits(description: str, name: str | None) -> str:
    """The description of a recipe's file with the bits that its name asks for.

    >>> _at_bits("4-bit weights, 8-bit activations", "brecq-w3a6")
    '3-bit weights, 6-bit activations'
    """
    for what, width in zip(("weights", "activations"), bits(name or "") or (), strict=False):
        description = re.sub(rf"\d-bit {what}", f"{width}-bit {what}", description)
    return description


def _head(option: dict[str, Any]) -> str:
    return f"{option['name']}: {option['type']}" + ("" if option["required"] else f" = {option['default']}")


def _meaning(option: dict[str, Any]) -> str:
    must = "must be given" if option["required"] else ""
    return "; ".join(filter(None, [option["help"], option["valid"], must]))


def _words(value: str | bool | list[str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) or "nothing") if isinstance(value, list) else value


def _nothing(name: str, catalog: Catalog, others: tuple[str, ...]) -> str:
    known = {n for kind, classes in catalog.classes.items() if kind != "kernels" for n in classes} | {*others}
    message = f"nothing is named {name!r}, {did_you_mean(name, known)}"
    if catalog.broken:
        message += f" (broken plugins: {', '.join(b.plugin for b in catalog.broken)}; see `qpass list passes`)"
    return message
