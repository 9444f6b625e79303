"""A feature network of a few lines: exact, quick, and it counts what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from qpass_evaluators.networks.feature_network import FeatureNetwork, Pictures, Run
from torch import Tensor

SEEN: list[int] = []  # images in each call


@attrs.frozen(kw_only=True)
class Thumbnail(FeatureNetwork):
    """The image at 2 x 2 (12 numbers), its mean colour (3), and that as the logits of three classes."""

    name: ClassVar[str] = "thumbnail"
    batch: ClassVar[int] = 32

    resize: str = "pytorch"
    precision: str = "float32"
    weights: str = ""

    def fingerprint(self) -> str:
        return "none"

    def protocol(self) -> Mapping[str, Any]:
        return {
            "features": self.name,
            "weights": self.fingerprint(),
            "resize": self.resize,
            "precision": self.precision,
        }

    def dimensions(self) -> Mapping[str, int]:
        return {"pool": 12, "spatial": 3, "logits": 3}

    def prepare(self, device: torch.device) -> Run:
        def run(images: Pictures) -> Mapping[str, Tensor]:
            SEEN.append(len(images))
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            small = torch.nn.functional.adaptive_avg_pool2d(x, 2)
            colour = small.mean((2, 3))
            return {"pool": small.flatten(1), "spatial": colour, "logits": 10 * colour}

        return run
