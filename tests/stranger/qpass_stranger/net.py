"""A convolutional denoiser of 8 x 8 images, small enough to sample from while one watches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from attrs import validators as v
from torch import Tensor, nn

from qpass import ModelAdapter
from qpass.sampling import Sampler

SIZE, TIMESTEPS = 8, 100


class Net(nn.Module):
    """Predicts the noise in x, N x 3 x 8 x 8, at timesteps t, N."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.time = nn.Linear(2, width)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t.to(x.dtype) * (math.pi / TIMESTEPS)
        moment = self.time(torch.stack([angle.sin(), angle.cos()], dim=-1))
        h = nn.functional.silu(self.enter(x) + moment[..., None, None])
        h = h + nn.functional.silu(self.middle(h))
        return x + 0.1 * self.leave(h)


@attrs.frozen(kw_only=True)
class StrangerNet(ModelAdapter):
    """Three convolutions and a linear layer, with seeded weights."""

    name = "stranger-net"

    width: int = attrs.field(default=16, validator=v.ge(1), metadata={"help": "channels inside the network"})
    seed: int = attrs.field(default=0, validator=v.ge(0), metadata={"help": "what the weights are drawn with"})

    def load(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Net(self.width).eval()

    def skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return Net(self.width).eval()

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
        return x, torch.randint(0, TIMESTEPS, (batch,), generator=generator)

    def config(self) -> Mapping[str, Any]:
        return {"class": "Net", "width": self.width}

    def fingerprint(self) -> str:
        return f"stranger-net {self.width} {self.seed}"

    def cannot_sample(self) -> str | None:
        return None

    def sampler(self) -> Sampler:
        schedule = {"num_train_timesteps": TIMESTEPS, "beta_schedule": "linear", "clip_sample": True}
        return Sampler(shape=(3, SIZE, SIZE), scheduler_config=schedule)
