"""Plain functions a graph may call beside aten ops."""

from __future__ import annotations

import torch


def device_of(x: torch.Tensor) -> torch.device:
    """The device of a tensor: graphs make their constants there, never on the device they were traced on."""
    return x.device


def affine_by_group(x: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """`x * gain[group] + shift[group]`, a group for each sample, in fp32.

    >>> affine_by_group(torch.ones(2, 1), torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), torch.tensor([1, 0]))
    tensor([[2.],
            [1.]])
    """
    return (x.float() * gain[group] + shift[group]).to(x.dtype)
