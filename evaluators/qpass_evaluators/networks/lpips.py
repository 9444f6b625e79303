"""LPIPS: how far apart two images look, by a network whose features were weighted to agree with people.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), equation 1, version 0.1
with AlexNet: d = sum over layers of mean over positions of w · (x̂ - ŷ)², x̂ and ŷ features scaled to unit length at
each position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.evaluator import EvaluationError
from qpass_evaluators.networks import weight_files
from qpass_evaluators.networks.feature_network import CPU, Pictures, as_tensor, check_images, full_precision

SHIPPED = weight_files.SHIPPED / "lpips_alex_fp16.safetensors"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for -1..1
SMALLEST = 31  # a smaller side leaves nothing for the last pool
EPSILON = 1e-10  # as the original has it, where features are all zero

# stride, padding, and whether a max-pool comes before
LAYERS = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))


@attrs.frozen(kw_only=True)
class Lpips:
    """LPIPS 0.1 with AlexNet, on the weights that ship."""

    name: ClassVar[str] = "lpips-alex"
    batch: ClassVar[int] = 64

    def fingerprint(self) -> str:
        """A hash of the weights."""
        return weight_files.fingerprint(SHIPPED)

    def protocol(self) -> Mapping[str, Any]:
        """Everything that determines a distance, as plain JSON."""
        return {
            "features": self.name,
            "weights": self.fingerprint(),
            "version": "0.1",
            "resize": "none",
            "precision": "float32",
        }

    def check_size(self, height: int, width: int) -> None:
        """Raise `EvaluationError` where images of that size are too small."""
        if min(height, width) < SMALLEST:
            raise EvaluationError(
                f"{self.name}: images must be at least {SMALLEST} x {SMALLEST}, not {height} x {width}"
            )

    def distance(self, a: Pictures, b: Pictures, device: torch.device = CPU) -> Tensor:
        """uint8 images N x H x W x 3, twice, to the distance of each pair (N,), fp32 on the CPU."""
        for images in (a, b):
            check_images(self.name, images)
        if a.shape != b.shape:
            raise EvaluationError(f"{self.name}: images must come in pairs, not {a.shape} beside {b.shape}")
        self.check_size(*a.shape[1:3])
        weights = _load(SHIPPED, self.fingerprint(), device)
        found = [torch.empty(0)]
        with torch.inference_mode(), full_precision(device):
            for start in range(0, len(a), self.batch):
                some = slice(start, start + self.batch)
                found.append(distance(as_tensor(a[some], device), as_tensor(b[some], device), weights).cpu())
        return torch.cat(found).clone()


def distance(a: Tensor, b: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Equation 1, of uint8 N x H x W x 3."""
    total = torch.zeros(len(a), device=a.device)
    both = layers(torch.cat([a, b]), weights)
    for features, head in zip(both, (weights[f"lin{i}.weight"] for i in range(len(LAYERS))), strict=True):
        x, y = unit(features).chunk(2)
        total += F.conv2d((x - y).square(), head).mean((1, 2, 3))
    return total


def layers(images: Tensor, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """AlexNet's five convolutions after their ReLU."""
    shift, scale = (torch.tensor(values, device=images.device) for values in (SHIFT, SCALE))
    x = ((images.float() / 127.5 - 1 - shift) / scale).permute(0, 3, 1, 2)
    for i, (stride, padding, pooled) in enumerate(LAYERS, 1):
        x = F.max_pool2d(x, 3, 2) if pooled else x
        x = F.conv2d(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride, padding).relu_()
        yield x


def unit(features: Tensor) -> Tensor:
    """Scaled to length one at each position."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + EPSILON)


@lru_cache(maxsize=2)
def _load(path: Path, fingerprint: str, device: torch.device) -> Mapping[str, Tensor]:
    state = weight_files.read(path)
    names = {f"conv{i}.{part}" for i in range(1, 6) for part in ("weight", "bias")}
    names |= {f"lin{i}.weight" for i in range(5)}
    weight_files.check_names(path, set(state), names, "LPIPS with AlexNet")
    return {
        name: state[name].to(device).contiguous(memory_format=torch.channels_last)
        if state[name].ndim == 4
        else state[name].to(device)
        for name in names
    }
