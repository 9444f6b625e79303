"""A feature network of a few lines, exact and quick, that counts what it is asked; and a way to interrupt it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import attrs
import torch
from qpass_evaluators.networks.feature_network import FeatureNetwork, Pictures, Run
from torch import Tensor

from qpass.progress import Progress, Task

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


class PowerError(Exception):
    """The power goes."""


class Failing(Progress):
    """The power goes when so many shards have been done."""

    def __init__(self, after: int = 1) -> None:
        self.after = after

    @contextmanager
    def task(self, title: str, total: int, cost: float = 0.0) -> Iterator[Task]:
        progress = self

        class Last(Task):
            def advance(self, amount: int = 1) -> None:
                progress.after -= 1
                if not progress.after:
                    raise PowerError

        yield Last()
