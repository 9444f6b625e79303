"""Write the catalogue pages: `python -m qpass.catalogue` renews the listed part of each README from the code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from qpass import hookspecs
from qpass.cli.describe import docstring, first_sentence, options, origin
from qpass.files import write_file
from qpass.plugins import Catalog, catalog

START, END = "<!-- catalogue: written by `python -m qpass.catalogue` -->", "<!-- end of catalogue -->"
PAGES = {
    "passes/README.md": ("passes", "quantizers", "analyses", "hooks"),
    "models/README.md": ("models",),
    "evaluators/README.md": ("evaluators",),
}
TITLES = {
    "passes": "Passes",
    "quantizers": "Quantizers",
    "analyses": "Calibration sets",
    "models": "Models",
    "evaluators": "Evaluators",
}


def section(kind: str, known: Catalog) -> str:
    """One kind of plugin as markdown: docstring and options of each that ships."""
    if kind == "hooks":
        return "\n".join(_hooks())
    lines = [f"## {TITLES[kind]}", ""]
    for name, cls in known.classes[kind].items():
        if origin(cls) != "qpass" or not attrs.has(cls):
            continue
        lines += [f"### `{name}`", "", docstring(cls), ""]
        if rows := options(cls):
            lines += ["| option | default | meaning |", "|---|---|---|"]
            lines += [f"| `{o.name}` | `{o.default or 'required'}` | {_cell(o.help)} |" for o in rows]
            lines.append("")
    return "\n".join(lines)


def page(text: str, kinds: tuple[str, ...], known: Catalog) -> str:
    """A page with its catalogue renewed."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    body = "\n".join(section(kind, known) for kind in kinds)
    return f"{before}{START}\n\n{body}\n{END}{after}"


def _hooks() -> Iterator[str]:
    yield from ("## Hooks", "", "| hook | what it does |", "|---|---|")
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if function.__module__ == hookspecs.__name__:
            yield f"| `{name}({', '.join(inspect.signature(function).parameters)})` | {_cell(function.__doc__ or '')} |"
    yield ""


def _cell(text: str) -> str:
    return first_sentence(text).replace("|", "\\|")


def main(root: Path) -> None:
    """Renew every page below a checkout."""
    known = catalog()
    for name, kinds in PAGES.items():
        file = root / name
        write_file(file, page(file.read_text(encoding="utf-8"), kinds, known))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
