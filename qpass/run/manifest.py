"""What a run was calibrated on, in a page: `calibration.json`, the same for equal seeds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import torch

from qpass.activations import Samples
from qpass.analysis import Analysis
from qpass.recipe.structure import to_data
from qpass.report.data import plain


def manifest(question: Analysis[Any], seed: int, samples: Samples) -> dict[str, Any]:
    """The set's name, options and seed; how many rows it has, and at which timesteps; shapes, types and a hash."""
    options = to_data(question)
    timesteps: Counter[str] = Counter()
    for t in sorted(samples.t.tolist()):
        timesteps[f"{t:g}"] += 1
    return {
        "name": options.pop("use"),
        "options": plain(options),
        "seed": seed,
        "rows": len(samples),
        "timesteps": dict(timesteps),
        "inputs": [
            {
                "shape": list(part.shape),
                "dtype": str(part.dtype).removeprefix("torch."),
                "rows": place not in samples.unbatched,
            }
            for place, part in enumerate(samples.inputs)
        ],
        "sha256": rows_hash(samples),
    }


def rows_hash(samples: Samples) -> str:
    """A hash of every input's type, shape and bytes, in order."""
    total = hashlib.sha256()
    for part in samples.inputs:
        total.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
        total.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def to_text(data: dict[str, Any]) -> str:
    """As a file."""
    return json.dumps(data, indent=1) + "\n"
