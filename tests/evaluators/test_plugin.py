"""The evaluators come in by the same door as a stranger's."""

from __future__ import annotations

import attrs

from qpass.evaluator import Evaluator
from qpass.plugins import catalog


def test_the_catalog_finds_every_evaluator() -> None:
    """Each is registered under its name and explains itself, and every option in one line."""
    found = catalog().classes["evaluators"]
    assert {"cost", "drift", "latency", "size"} <= set(found)
    for name, kind in found.items():
        assert issubclass(kind, Evaluator)
        assert kind.name == name
        assert kind.__doc__
        for field in attrs.fields(kind):
            assert field.metadata["help"]
            assert "\n" not in field.metadata["help"]
