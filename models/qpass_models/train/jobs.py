"""What can be trained, and how: one job per model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qpass_models.denoiser import diffusers_class
from qpass_models.train.cifar10 import Pictures
from qpass_models.train.objective import class_error, flip, noise_error, shift

LINEAR: Mapping[str, Any] = {"beta_schedule": "linear"}
COSINE: Mapping[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}


@attrs.frozen(kw_only=True)
class Job(ABC):
    """How a network is trained. `steps` are those of a full training on a GPU; the command line can ask for fewer."""

    name: str
    steps: int
    batch: int = 128
    rate: float = 3e-4
    decay: float = 0.0
    average: float = 0.9999
    compiles: bool = False  # worth compiling on a CPU

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, untrained."""

    @abstractmethod
    def loss(self, network: Any, pictures: Pictures, count: int, source: torch.Generator) -> Tensor:
        """The loss of a batch of `count` images drawn from the generator."""


@attrs.frozen(kw_only=True)
class DiffusionJob(Job):
    """A denoiser that predicts noise. `empty` is the label that stands for no class, where there are labels."""

    class_name: str
    architecture: Mapping[str, Any]
    schedule: Mapping[str, Any]
    empty: int | None = None
    dropped: float = 0.1
    gamma: float = 5.0

    def build(self) -> nn.Module:
        network: nn.Module = diffusers_class(self.class_name)(**self.architecture)
        return network

    def scheduler(self) -> Any:
        """The noise schedule, as the diffusers scheduler that images are drawn with by default."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(**self.schedule)

    def loss(self, network: Any, pictures: Pictures, count: int, source: torch.Generator) -> Tensor:
        """Noise prediction on mirrored images; one label in ten is withheld, for guidance."""
        x, labels = draw(pictures, count, source)
        x, device = flip(x.float() / 127.5 - 1, source), x.device
        alphas = self.scheduler().alphas_cumprod.to(device)
        t = torch.randint(0, len(alphas), (count,), generator=source, device=device)
        noise = torch.randn(x.shape, generator=source, device=device)
        given: tuple[Tensor, ...] = ()
        if self.empty is not None:
            withheld = torch.rand(count, generator=source, device=device) < self.dropped
            given = (torch.where(withheld, self.empty, labels),)
        return noise_error(
            lambda noisy, times: network(noisy, times, *given, return_dict=False)[0],
            x, t, noise, alphas, self.gamma,
        )  # fmt: skip


@attrs.frozen(kw_only=True)
class ClassifierJob(Job):
    """The classifier behind `classifier` and `classifier-score`."""

    def build(self) -> nn.Module:
        from qpass_evaluators.networks.classifier import build

        return build()

    def loss(self, network: Any, pictures: Pictures, count: int, source: torch.Generator) -> Tensor:
        """Cross-entropy on mirrored and shifted images."""
        from qpass_evaluators.networks.classifier import normalise

        x, labels = draw(pictures, count, source)
        x = shift(flip(x, source), source)
        return class_error(network, normalise(x.permute(0, 2, 3, 1)), labels)


def draw(pictures: Pictures, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random batch, uint8, with its labels."""
    device = pictures.images.device
    chosen = torch.randint(0, len(pictures.images), (count,), generator=source, device=device)
    return pictures.images[chosen], pictures.labels[chosen]


def _unet(channels: tuple[int, ...], layers: int, attention: int, **rest: Any) -> Mapping[str, Any]:
    """A UNet2DModel with attention at 16 x 16, as in DDPM."""
    down = tuple("AttnDownBlock2D" if i == 1 else "DownBlock2D" for i in range(len(channels)))
    up = tuple("AttnUpBlock2D" if i == len(channels) - 2 else "UpBlock2D" for i in range(len(channels)))
    return {
        "sample_size": 32, "in_channels": 3, "out_channels": 3, "block_out_channels": channels,
        "layers_per_block": layers, "down_block_types": down, "up_block_types": up,
        "attention_head_dim": attention, **rest,
    }  # fmt: skip


def _dit(heads: int, layers: int, patch: int) -> Mapping[str, Any]:
    return {
        "sample_size": 32, "in_channels": 3, "out_channels": 3, "patch_size": patch, "num_layers": layers,
        "num_attention_heads": heads, "attention_head_dim": 64, "num_embeds_ada_norm": 10,
        "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "activation_fn": "gelu-approximate",
        "norm_num_groups": 1,
    }  # fmt: skip


JOBS: Mapping[str, Job] = {
    job.name: job
    for job in (
        DiffusionJob(
            name="cifar10-unet", class_name="UNet2DModel", schedule=LINEAR, steps=200_000, compiles=True,
            architecture=_unet((32, 64, 128), 1, 32, norm_num_groups=8),
        ),
        DiffusionJob(
            name="cifar10-dit", class_name="DiTTransformer2DModel", schedule=COSINE, steps=200_000, empty=10,
            architecture=_dit(heads=4, layers=8, patch=4),
        ),
        DiffusionJob(
            name="cifar10-ddpm", class_name="UNet2DModel", schedule=LINEAR, steps=400_000, rate=2e-4,
            architecture=_unet((128, 256, 256, 256), 2, 256, norm_eps=1e-6, downsample_padding=0),
        ),
        DiffusionJob(
            name="cifar10-dit-s", class_name="DiTTransformer2DModel", schedule=COSINE, steps=400_000, empty=10,
            rate=1e-4, architecture=_dit(heads=6, layers=12, patch=2),
        ),
        ClassifierJob(
            name="cifar10-classifier", steps=12_000, rate=2e-3, decay=0.05, average=0.999,
        ),
    )
}  # fmt: skip
