"""An artifact's document, changed by one who knows the format: its hashes fit again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from qpass.artifact import load_artifact
from qpass.errors import ArtifactError
from qpass.plugins import Catalog

Document = dict[str, Any]


def write(folder: Path, document: Document) -> None:
    """Write the document as one who knows the format would: with hashes that fit."""
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    rest = {**document, "weights": weights}
    rest.pop("checksum", None)
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    rest["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "qpass.json").write_text(json.dumps(rest, sort_keys=True, separators=(",", ":")))


def read(folder: Path) -> Document:
    document: Document = json.loads((folder / "qpass.json").read_text())
    return document


def refusal(folder: Path, known: Catalog, file: str = "qpass.json") -> str:
    """The message with which the folder is refused."""
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder, known)
    assert str(folder / file) in str(caught.value)
    return str(caught.value)
