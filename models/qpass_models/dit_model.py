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
from qpass_models.autoencoder import pixel_scale
from qpass_models.diffusers_folder import contents, read_json
from qpass_models.weights import choose

AUTOENCODER = "AutoencoderKL"


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
        """A DiT of the checkpoint's shape, on the meta device.

        It is what a run asks for first, so a wrong `vae` is told here: before anything is traced, and although a
        run that draws nothing could do without.
        """
        from qpass_models.dit import DiT

        if reason := self._wrong_vae():
            raise ModelError(reason)
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
        """Of the file, and of the autoencoder's where there is one."""
        with Path(self.path).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256")
        for piece in contents(Path(self.vae)) if self.vae else ():
            digest.update(piece)
        return digest.hexdigest()

    def _wrong_vae(self) -> str | None:
        """Why the autoencoder cannot decode these latents, as far as its configuration and file names tell."""
        if not self.vae:
            return None
        folder = Path(self.vae)
        way_out = f"give the folder of an {AUTOENCODER}, such as the vae folder of a pipeline"
        if not (folder / "config.json").is_file():
            return f"model.vae: no config.json in {self.vae!r}; {way_out}"
        config = read_json(folder / "config.json")
        if (name := config.get("_class_name")) != AUTOENCODER:
            return f"model.vae: {self.vae!r} holds a {name}; {way_out}"
        if not choose(self.vae, (file.name for file in folder.iterdir())).files:
            return f"model.vae: no weights in {self.vae!r}; {way_out}"
        given, wanted = config.get("latent_channels", 4), self._config().in_channels
        if given != wanted:
            return (
                f"model.vae: {self.vae!r} decodes latents of {given} channels, and the checkpoint's have {wanted}; "
                "give the one it was trained with"
            )
        return None

    def cannot_sample(self) -> str | None:
        """Latents need a decoder, and the right one; without one, 1 or 3 channels are pixels."""
        if self._config().in_channels not in (1, 3) and not self.vae:
            return "its outputs are latents; give model.vae, the folder of the autoencoder that decodes them"
        return self._wrong_vae()

    def sampler(self) -> Sampler:
        """Shape, schedule, classes and decoder."""
        from qpass_models.diffusers_model import FolderDecoder

        config = self._config()
        scale = pixel_scale(read_json(Path(self.vae) / "config.json")) if self.vae else 1
        return Sampler(
            shape=(config.in_channels, config.input_size, config.input_size),
            scheduler_config={
                "num_train_timesteps": 1000,
                "beta_schedule": self.beta_schedule,
                "prediction_type": "epsilon",
                "clip_sample": not self.vae,  # pixels have a range, latents have none
                "variance_type": "learned_range" if config.learn_sigma else "fixed_large",
            },
            conditions=lambda indices, sampling: _classes(indices, config.num_classes),
            decode=FolderDecoder(Path(self.vae)) if self.vae else to_uint8,
            size=(config.input_size * scale, config.input_size * scale),
        )


def _classes(indices: Sequence[int], count: int) -> Conditions:
    given = torch.tensor([i % count for i in indices])
    return Conditions(given=(given,), empty=(torch.full_like(given, count),))
