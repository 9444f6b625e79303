"""The code version of a plugin is found wherever its class was written."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import attrs
import pytest

from qpass.plugins import catalog
from qpass.run.fingerprint import own_code

PASS = """
import attrs
import qpass

@attrs.frozen(kw_only=True)
class Mine(qpass.Pass):
    name = "mine"
    def run(self, graph, ctx): ...

@qpass.hookimpl
def register_passes():
    return [Mine]
"""


def test_a_file_edited_meanwhile(tmp_path: Path) -> None:
    """One that is read again in the same process has another version, so nothing made with the old is kept."""
    file = tmp_path / "mine.py"
    versions = []
    for source in (PASS, PASS + "\n# better now\n", PASS):
        file.write_text(source)
        versions.append(own_code(catalog([file]).find("passes", "mine")()))
    assert versions[0] == versions[2] != versions[1]
    assert list(versions[0]) == ["qpass_plugin_mine"]


def test_a_namespace_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no file, but what lies in it has."""
    inner = tmp_path / "stranger_space" / "part"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text(PASS)
    monkeypatch.syspath_prepend(tmp_path)
    part = importlib.import_module("stranger_space.part")
    assert list(own_code(part.Mine())) == ["stranger_space.part"]
    for name in ("stranger_space", "stranger_space.part"):
        monkeypatch.delitem(sys.modules, name)


def test_typed_at_a_prompt() -> None:
    """Two classes that cannot be read again are never taken for the same."""

    def typed() -> object:
        names: dict[str, object] = {"__name__": "no_such_file"}
        exec("class Mine:\n    pass", names)
        return attrs.frozen(names["Mine"])()  # type: ignore[arg-type]

    one, other = typed(), typed()
    assert own_code(one) == own_code(one)
    assert own_code(one) != own_code(other)
