"""What a training leaves: a diffusers folder with averaged weights in fp16, and a card of how they came to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qpass.errors import ModelError
from qpass.files import new_folder
from qpass_models.train.jobs import DiffusionJob, Job
from qpass_models.train.state import State

WEIGHTS = "diffusion_pytorch_model.safetensors"


def export(job: Job, state: State, card: Mapping[str, Any], folder: Path) -> None:
    """Write the averaged weights, with configuration and noise schedule, and the card."""
    network = job.build()
    network.load_state_dict({name: value.cpu() for name, value in state.average.tensors.items()})
    with new_folder(folder) as aside:
        if isinstance(job, DiffusionJob):
            network.half().save_pretrained(aside)  # type: ignore[operator]
            job.scheduler().save_pretrained(aside)
        else:
            half = {
                name: value.half() if value.is_floating_point() else value
                for name, value in network.state_dict().items()
            }
            save_file({name: value.contiguous() for name, value in half.items()}, aside / WEIGHTS)
        (aside / "card.json").write_text(json.dumps(card, indent=2) + "\n")
        for file in aside.iterdir():
            file.chmod(0o644)  # safetensors makes files that others cannot read


def load_weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """The averaged weights of an exported folder, in fp32, to train on from."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{str(folder / WEIGHTS)!r} cannot be read: {error}; fetch or train it again") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
