"""The recipes that ship, found and described without carrying them out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import attrs
import click

from qpass.cli.describe import first_sentence
from qpass.errors import RecipeError
from qpass.recipes import shipped


@attrs.frozen(kw_only=True)
class RecipeFile:
    """A recipe as it stands in its file. `description` is the comment the file opens with."""

    name: str
    path: Path
    description: str
    data: dict[str, Any]

    @property
    def summary(self) -> str:
        return first_sentence(self.description)


def read(path: Path) -> RecipeFile:
    """Read one file; a `RecipeError` where it is missing or not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise RecipeError("no such file", str(path)) from None
    except IsADirectoryError:
        raise RecipeError("this is a folder; a recipe is a TOML file", str(path)) from None
    except (ValueError, RecursionError) as error:  # tomllib's own errors, no UTF-8, too many digits
        raise RecipeError(f"not a TOML file: {error}", str(path)) from error
    return RecipeFile(name=path.stem, path=path, description=opening(text), data=data)


def opening(text: str) -> str:
    """The comment a file opens with, as one line.

    >>> opening("# Four-bit weights,\\n# eight-bit inputs.\\n\\nseed = 0  # any")
    'Four-bit weights, eight-bit inputs.'
    """
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return " ".join(filter(None, lines))


def is_path(text: str) -> bool:
    """Whether a user who writes this means a file rather than a name.

    >>> is_path("tcaq-w4a4"), is_path("./mine"), is_path("mine.toml")
    (False, True, True)
    """
    return "/" in text or text.endswith(".toml")


def complete(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Names that ship, then files, for completion with the Tab key."""
    fitting = [click.shell_completion.CompletionItem(name) for name in shipped() if name.startswith(incomplete)]
    return [*fitting, click.shell_completion.CompletionItem(incomplete, type="file")]
