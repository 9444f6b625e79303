"""The exponential moving average of a network's weights, which is what ships."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """Tracks a network in fp32: average <- d average + (1 - d) weights, d rising to `decay` over the first steps.

    Buffers, such as a batch-norm's running statistics, are copied as they are.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """After optimizer step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged = {name for name, _ in network.named_parameters()}
        state = network.state_dict()
        names = [name for name in self.tensors if name in averaged]
        ours: list[Tensor] = [self.tensors[name] for name in names]
        torch._foreach_lerp_(ours, [state[name] for name in names], 1 - decay)
        for name in self.tensors.keys() - averaged:
            self.tensors[name].copy_(state[name])
