"""How a run with bad input ends: in one clear sentence, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPE = """
[model]
{model}
[sampling]
steps = 2
[calibration]
use = "uniform-steps"
samples = 2
steps = 2
"""
QUANTIZE = """
[[passes]]
use = "assign"
input = "float"
edge_input = "float"
attention = "float"
[[passes]]
use = "simulate"
weight = "absmax"
"""
Folder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


class Outcome:
    """How a run ended."""

    def __init__(self, code: int, err: str, out: Path) -> None:
        self.code, self.err, self.out = code, err, out

    @property
    def said(self) -> str:
        """The error itself: progress stands before it."""
        return self.err[max(self.err.find("error: "), self.err.find("this is a bug in qpass: "), 0) :]

    @property
    def files(self) -> set[str]:
        """What stands in the run's folder, its stages aside."""
        every = (path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file())
        return {str(path) for path in every if path.parts[0] != "stages"}


Run = Callable[..., Outcome]


def diffusers(folder: Path) -> str:
    """The options of a model in a folder."""
    return f'use = "diffusers"\npath = {json.dumps(str(folder))}'


def refused(outcome: Outcome, *said: str) -> None:
    """Before anything was written: exit code 2 and one error."""
    assert outcome.code == 2
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("error: ") == 1
    for text in said:
        assert text in outcome.err
    assert not outcome.out.exists()


def stopped(outcome: Outcome, *said: str, code: int = 2) -> None:
    """On the way: one error at the end, and no artifact or report that looks like a finished one."""
    assert outcome.code == code
    for text in said:
        assert text in outcome.said
    assert outcome.files - {"calibration.json"} == {"recipe.toml"}  # it may have got as far as calibration
