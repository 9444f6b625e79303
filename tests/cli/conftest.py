"""A plugin file as a stranger would write it, and a shelf of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

PLUGIN = '''
from __future__ import annotations

from typing import Literal

import attrs

import qpass

@attrs.frozen(kw_only=True)
class Nudge(qpass.Pass):
    """Nudges weights, i.e. It does nothing. A second sentence.

    And a second paragraph.
    """

    name = "nudge"
    needs = frozenset({"specs"})
    provides = frozenset({"nudged"})

    target: str = attrs.field(metadata={"help": "which nodes"})
    amount: float = attrs.field(
        default=0.5,
        validator=[attrs.validators.ge(0.0), attrs.validators.lt(1.0)],
        metadata={"help": "how far"},
    )
    how: Literal["up", "down"] = "up"
    layers: tuple[str, ...] = ()
    cap: int | None = None

    def run(self, graph, ctx):
        return qpass.PassResult(graph=graph, changed=False)


@qpass.hookimpl
def register_passes():
    return [Nudge]
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A plugin file that brings the pass `nudge`."""
    file = tmp_path / "nudge_plugin.py"
    file.write_text(PLUGIN)
    return file


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder of recipes: one described, one bare, one that is not TOML."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "gentle.toml").write_text("# Eight bits everywhere.\n# It loses little.\n\nseed = 1  # any\n")
    (folder / "bare.toml").write_text("seed = 2\n")
    (folder / "torn.toml").write_text("seed = = 3\n")
    return folder
