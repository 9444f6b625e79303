"""What training changes, and what it was begun with: kept in one file, to resume from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from qpass.errors import ModelError
from qpass_models.train.average import Average

_AWAY = "delete it to start anew, or choose another --out"
_KEYS = ("network", "average", "optimizer", "step", "seconds", "loss")


@attrs.frozen(kw_only=True)
class Settings:
    """What a training is begun with and must go on with: options of the command line, by their names."""

    seed: int = 0
    batch: int
    rate: float
    average: float
    init: str | None = None


@attrs.define(kw_only=True, eq=False)
class State:
    """Everything that training changes."""

    network: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    settings: Settings
    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")

    def dump(self) -> bytes:
        """As a file."""
        out = io.BytesIO()
        torch.save(
            {
                "network": self.network.state_dict(), "average": self.average.tensors,
                "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
                "loss": self.loss, "settings": attrs.asdict(self.settings),
            },
            out,
        )  # fmt: skip
        return out.getvalue()

    def restore(self, path: Path, device: torch.device) -> None:
        """The inverse; raises `ModelError` where the file is of another training, or none."""
        kept = _read(path, device)
        self._check(path, kept.get("settings") or {})
        for tensors in (kept["network"], kept["average"]):
            if reason := misfit(self.network, tensors):
                raise ModelError(f"{str(path)!r} does not belong to this training: {reason}; {_AWAY}")
        try:
            self.optimizer.load_state_dict(kept["optimizer"])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{str(path)!r} holds the state of another optimizer; {_AWAY}") from error
        self.network.load_state_dict(kept["network"])
        self.average.tensors = kept["average"]
        self.step, self.seconds, self.loss = kept["step"], kept["seconds"], kept["loss"]

    def _check(self, path: Path, begun: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings, which the model's card would state of all that was trained before.

        A file of before settings were kept has none, and goes on unchecked: what it was begun with, nobody knows.
        """
        now = attrs.asdict(self.settings)
        if other := [name for name in now if name in begun and begun[name] != now[name]]:
            raise ModelError(
                f"the training in {str(path)!r} was begun with {_typed(begun, other)}, and this command says "
                f"{_typed(now, other)}; say the former to go on with it, or choose another --out to start anew"
            )


def _typed(settings: Mapping[str, Any], names: list[str]) -> str:
    """Some settings as they are typed.

    >>> _typed({"batch": 4, "seed": 0, "init": None}, ["batch", "init"])
    '--batch 4, no --init'
    """
    return ", ".join(f"no --{n}" if settings[n] is None else f"--{n} {settings[n]}" for n in names)


def misfit(network: nn.Module, tensors: object) -> str | None:
    """The first thing that keeps tensors from being a network's weights."""
    ours = network.state_dict()
    if not isinstance(tensors, Mapping):
        return "it holds no weights"
    for name, value in ours.items():
        if name not in tensors:
            return f"it lacks {name!r}"
        if (shape := tuple(getattr(tensors[name], "shape", ()))) != tuple(value.shape):
            return f"its {name!r} has the shape {shape}, not {tuple(value.shape)}"
    return next((f"it holds {name!r}, which the model has not" for name in tensors if name not in ours), None)


def _read(path: Path, device: torch.device) -> Mapping[str, Any]:
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError, PermissionError):
        raise
    except Exception as error:  # the bytes are foreign, and parsers fail on them with anything from EOFError on
        raise ModelError(
            f"{str(path)!r} is cut short, or no state of a training ({type(error).__name__}); {_AWAY}"
        ) from error
    if not isinstance(kept, Mapping) or (missing := [key for key in _KEYS if key not in kept]):
        lacks = f"it lacks {missing[0]!r}" if isinstance(kept, Mapping) else f"it holds a {type(kept).__name__}"
        raise ModelError(f"{str(path)!r} is no state of a training: {lacks}; {_AWAY}")
    return kept
