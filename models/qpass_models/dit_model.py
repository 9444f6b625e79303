"""The adapter of the original DiT release's checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from qpass.errors import ModelError
from qpass.model import ModelAdapter
from qpass.sampling import Conditions, Sampler, to_uint8


@attrs.frozen(kw_only=True)
class DiTModel(ModelAdapter):
    """A DiT checkpoint in the original release's layout, such as DiT-XL-2-256x256.pt, built from timm blocks.

    Its outputs are latents: images need the autoencoder's folder in `vae` (checkpoints on pixels need none).
    Image i is of class i modulo the number of classes.
    """

    name: ClassVar[str] = "dit"
    path: str = attrs.field(metadata={"help": "a .pt or .safetensors checkpoint"})
    heads: int = attrs.field(
        default=0,
        validator=attrs.validators.ge(0),
        metadata={"help": "attention heads; 0 takes them from the published model of the same width"},
    )
    vae: str = attrs.field(
        default="", metadata={"help": "folder of a diffusers AutoencoderKL that decodes latents"}
    )
    beta_schedule: str = attrs.field(
        default="linear",
        validator=attrs.validators.in_(("linear", "scaled_linear", "squaredcos_cap_v2")),
        metadata={"help": "noise schedule it was trained on, in diffusers' words"},
    )

    def load(self) -> nn.Module:
        """The checkpoint, in fp32."""
        from qpass_models.dit_checkpoint import load_dit

        return load_dit(self.path, heads=self.heads or None).float()

    def skeleton(self) -> nn.Module:
        """A DiT of the checkpoint's shape, on the meta device."""
        from qpass_models.dit import DiT

        with torch.device("meta"):
            return DiT(self._config()).eval()

    def _config(self) -> Any:
        """Every dimension, read off the shapes in the file; its weights stay on disk."""
        from qpass_models.dit_checkpoint import infer_config, read, weights

        path = Path(self.path)
        try:
            return infer_config(weights(read(path)), self.heads or None)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Seeded latents, timesteps and classes."""
        config = self._config()
        generator = torch.Generator().manual_seed(0)
        size = config.input_size
        return (
            torch.randn(batch, config.in_channels, size, size, generator=generator),
            torch.randint(0, 1000, (batch,), generator=generator),
            torch.randint(0, config.num_classes, (batch,), generator=generator),
        )

    def config(self) -> Mapping[str, Any]:
        """The dimensions."""
        return attrs.asdict(self._config())

    def fingerprint(self) -> str:
        """Of the file."""
        with Path(self.path).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    def cannot_sample(self) -> str | None:
        """Latents need a decoder."""
        if self._config().in_channels != 3 and not self.vae:
            return "its outputs are latents; give model.vae, the folder of the autoencoder that decodes them"
        return None

    def sampler(self) -> Sampler:
        """Shape, schedule, classes and decoder."""
        from qpass_models.diffusers_model import FolderDecoder

        config = self._config()
        return Sampler(
            shape=(config.in_channels, config.input_size, config.input_size),
            scheduler_config={
                "num_train_timesteps": 1000,
                "beta_schedule": self.beta_schedule,
                "prediction_type": "epsilon",
                "clip_sample": config.in_channels == 3,
                "variance_type": "learned_range" if config.learn_sigma else "fixed_large",
            },
            conditions=lambda indices, sampling: _classes(indices, config.num_classes),
            decode=FolderDecoder(Path(self.vae)) if self.vae else to_uint8,
        )


def _classes(indices: Sequence[int], count: int) -> Conditions:
    given = torch.tensor([i % count for i in indices])
    return Conditions(given=(given,), empty=(torch.full_like(given, count),))
