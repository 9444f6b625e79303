"""A model whose floating point is bfloat16, from recipe to report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import qpass


def test_a_bfloat16_model_is_quantized_and_measured(run: Callable[..., int], tmp_path: Path) -> None:
    """Calibration, passes and evaluators all give the model inputs of its own format, and it keeps that format."""
    assert run(tmp_path, "--set", "model.dtype=bfloat16") == 0
    loaded = qpass.load(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.denoise(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), 5).dtype == torch.bfloat16
