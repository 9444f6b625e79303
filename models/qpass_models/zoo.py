"""Small real models that ship with qpass, so that everything runs without a download."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs

from qpass_models.diffusers_folder import Folder, find
from qpass_models.diffusers_model import DiffusersModel

ZOO = Path(__file__).parent / "zoo"


@attrs.frozen(kw_only=True)
class ZooModel(DiffusersModel):
    """A model of the zoo: its folder lies in this package."""

    path: str = attrs.field(init=False, default="")
    component: str = attrs.field(init=False, default="")
    scheduler: dict[str, object] = attrs.field(init=False, factory=dict)
    optional: tuple[str, ...] = attrs.field(init=False, default=())

    def _find(self) -> Folder:
        return find(ZOO / self.name)


@attrs.frozen(kw_only=True)
class Cifar10UNet(ZooModel):
    """An unconditional DDPM/DDIM UNet on CIFAR-10, 2.6 M parameters (diffusers UNet2DModel, linear schedule)."""

    name: ClassVar[str] = "cifar10-unet"


@attrs.frozen(kw_only=True)
class Cifar10DiT(ZooModel):
    """A class-conditional DiT on CIFAR-10, 10.7 M parameters (diffusers DiTTransformer2DModel, cosine schedule)."""

    name: ClassVar[str] = "cifar10-dit"
