"""The recipes that ship, by name. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped(folder: Path = FOLDER) -> dict[str, Path]:
    """The file of each recipe, in order of name."""
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
