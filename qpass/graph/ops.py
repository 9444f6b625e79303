"""Plain functions a graph may call beside aten ops."""

from __future__ import annotations

import torch


def device_of(x: torch.Tensor) -> torch.device:
    """The device of a tensor: graphs make their constants there, never on the device they were traced on."""
    return x.device
