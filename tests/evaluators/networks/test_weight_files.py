"""Files of weights: whatever bytes they hold, what cannot be read is one clear error."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path

import pytest
import torch
from qpass_evaluators.networks import weight_files

from qpass.evaluator import EvaluationError


def saved() -> bytes:
    """A file that can be read."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(3)}, file)
    return file.getvalue()


def almost_pickle(seed: int) -> bytes:
    """Pickle's words in no order."""
    return b"\x80\x02" + bytes(random.Random(seed).choices(b"().cS}]KMJqX", k=50))


BROKEN = {
    "empty": b"",
    "text": b"hello\n",
    "a page of a site": b"<!DOCTYPE html>\n<html>404</html>\n",
    "zip": b"PK\x03\x04junk",
    "pickle": b"\x80\x02}q\x01",
    "cut": saved()[:300],
    **{f"random {seed}": random.Random(seed).randbytes(200) for seed in range(12)},
    **{f"almost pickle {seed}": almost_pickle(seed) for seed in range(12)},
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_read(tmp_path: Path, content: bytes, suffix: str) -> None:
    """One line that names the file and the way out, and no warning of torch's beside it."""
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with warnings.catch_warnings(action="error"), pytest.raises(EvaluationError) as caught:
        weight_files.read(file)
    text = str(caught.value)
    assert text.startswith(f"weights {str(file)!r} ")
    assert "cannot be read: " in text or "must hold one state dict" in text
    assert "\n" not in text
    assert "weights_only" not in text  # no advice of torch's to run code from the file


def test_what_can(tmp_path: Path) -> None:
    """The same file, whole."""
    (tmp_path / "weights.pth").write_bytes(saved())
    assert weight_files.read(tmp_path / "weights.pth")["a"].tolist() == [1, 1, 1]
