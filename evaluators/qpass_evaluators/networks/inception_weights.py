"""Weights of the 2015 Inception as pytorch-fid and torch-fidelity store them, with batch-norm folded in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import attrs
import torch
from torch import Tensor

from qpass.evaluator import EvaluationError
from qpass_evaluators.networks import weight_files
from qpass_evaluators.networks.convolution import Convolution
from qpass_evaluators.networks.inception_graph import KERNELS, convolution

SHIPPED = weight_files.SHIPPED / "fid_inception_v3_2015_fp16.safetensors"
FULL = "weights-inception-2015-12-05-6726825d.pth"  # with classes, as torch-fidelity's releases have it
EPSILON = 1e-3  # of batch-norm
CLASSES = 1008
WHAT = "the 2015 Inception, as pytorch-fid and torch-fidelity name them"


@attrs.frozen(kw_only=True, eq=False)
class Weights:
    """The convolutions by name, and the 1008-way layer's matrix (1008 x 2048) where the file has one."""

    convolutions: Mapping[str, Convolution]
    classes: Tensor | None


def downloaded() -> Path | None:
    """The full weights where torch-fidelity leaves what it downloads, if it ever did."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / FULL
    return file if file.is_file() else None


def read(path: Path) -> dict[str, Tensor]:
    """What the file holds; an `EvaluationError` where that is not this network."""
    state = weight_files.read(path)
    wanted = {f"{name}.{part}" for name in KERNELS for part in ("conv.weight", *NORM)}
    weight_files.check_names(path, set(state), wanted, WHAT)
    for name, shape in KERNELS.items():
        if tuple(state[f"{name}.conv.weight"].shape) != shape:
            found = tuple(state[f"{name}.conv.weight"].shape)
            raise EvaluationError(f"weights {str(path)!r}: {name}.conv.weight must be {shape}, not {found}")
    return state


@lru_cache(maxsize=4)
def load(path: Path, fingerprint: str, dtype: torch.dtype, device: torch.device, batch: int) -> Weights:
    """Ready to run on that device, in batches of about that size.

    `fingerprint` is there so that a file that changed is read again.
    """
    state = read(path)
    made = {}
    for name in KERNELS:
        weight, bias = fold(name, state)
        made[name] = convolution(name, weight.to(device, dtype), bias.to(device, dtype), batch)
    classes = state.get("fc.weight")
    return Weights(convolutions=made, classes=None if classes is None else classes.to(device))


NORM = ("bn.bias", "bn.running_mean", "bn.running_var")


def fold(name: str, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Convolution and batch-norm as one weight and one bias in fp32, computed in fp64."""
    offset, mean, variance = (state[f"{name}.{part}"].double() for part in NORM)
    scale = (variance + EPSILON).rsqrt()
    if f"{name}.bn.weight" in state:  # TensorFlow's graph has none, and its ports store ones
        scale = scale * state[f"{name}.bn.weight"].double()
    weight = state[f"{name}.conv.weight"].double() * scale[:, None, None, None]
    return weight.float(), (offset - mean * scale).float()


@lru_cache(maxsize=16)
def has_classes(path: Path, fingerprint: str) -> bool:
    """Whether the file holds the 1008-way layer."""
    return "fc.weight" in weight_files.read(path)
