"""The model adapters that come with qpass, and the zoo, registered like anyone else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qpass.hookspecs import hookimpl

if TYPE_CHECKING:
    from qpass.model import ModelAdapter


@hookimpl
def register_models() -> Sequence[type[ModelAdapter]]:
    from qpass_models.diffusers_model import DiffusersModel
    from qpass_models.dit_model import DiTModel
    from qpass_models.in_memory import InMemory
    from qpass_models.zoo import Cifar10DiT, Cifar10UNet

    return (Cifar10DiT, Cifar10UNet, DiffusersModel, DiTModel, InMemory)
