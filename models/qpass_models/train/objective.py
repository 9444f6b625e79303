"""What is minimised: the error of the predicted noise (DDPM, equation 14), weighted by signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[..., Tensor]


def noise_error(network: Network, x0: Tensor, t: Tensor, noise: Tensor, alphas: Tensor, gamma: float) -> Tensor:
    """Mean of w(t) ||noise - network(x_t, t)||² / dimensions, x_t = sqrt(ā) x0 + sqrt(1 - ā) noise.

    w = min(SNR, gamma) / SNR, SNR = ā / (1 - ā): Min-SNR weighting (Hang et al., ICCV 2023, equation 5, for noise
    prediction), which keeps the easy, nearly clean steps from filling the gradient; gamma = 0 leaves w = 1.
    `x0` in [-1, 1], N x C x H x W; `alphas` are ā by timestep.
    """
    a = alphas[t].reshape(-1, 1, 1, 1)
    predicted = network(a.sqrt() * x0 + (1 - a).sqrt() * noise, t).float()
    error = (predicted - noise).square().mean(dim=(1, 2, 3))
    ratio = (a / (1 - a)).flatten()
    return (error * (ratio.clamp(max=gamma) / ratio if gamma else 1.0)).mean()


def class_error(network: Network, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with a little label smoothing."""
    return F.cross_entropy(network(x).float(), labels, label_smoothing=0.1)


def flip(x: Tensor, source: torch.Generator) -> Tensor:
    """Half of the images, mirrored left to right."""
    chosen = torch.rand(len(x), generator=source, device=x.device) < 0.5
    return torch.where(chosen.reshape(-1, 1, 1, 1), x.flip(-1), x)


def shift(x: Tensor, source: torch.Generator, by: int = 4) -> Tensor:
    """Each image moved by up to `by` pixels both ways, over a reflected border."""
    padded = F.pad(x, (by, by, by, by), mode="reflect")
    moves = torch.randint(0, 2 * by + 1, (2, len(x), 1, 1), generator=source, device=x.device)
    rows = moves[0] + torch.arange(x.shape[2], device=x.device).reshape(1, -1, 1)
    columns = moves[1] + torch.arange(x.shape[3], device=x.device).reshape(1, 1, -1)
    images = torch.arange(len(x), device=x.device).reshape(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[images, rows, columns].permute(0, 3, 1, 2)
