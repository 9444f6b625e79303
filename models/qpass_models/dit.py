"""DiT, the class-conditional diffusion transformer of Peebles and Xie (arXiv:2212.09748), from timm's parts.

Parameter names and shapes are those of the original release, so that its checkpoints load unchanged
(`qpass_models.dit_checkpoint.load_dit`). Timesteps t may be integers or floats, one per sample; class
`num_classes` is the null class of classifier-free guidance. The label dropout of training is not here: at
inference only the embedding table is used. Fresh weights are torch's defaults, not the paper's adaLN-Zero
(whose output is zero everywhere).

diffusers' DiTTransformer2DModel has the same weights but other arithmetic: its timestep frequencies are
10000^(-k/127) where the release has 10000^(-k/128), and its second norms have eps 1e-5 instead of 1e-6.

N samples, C channels, H = W = `input_size`, p = `patch_size`, T = (H / p)² tokens, D = `width`.
"""

from __future__ import annotations

import math

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from qpass_models.dit_config import DiTConfig

FREQUENCIES = 256  # length of the sinusoidal embedding of t, the same in every published model
MAX_PERIOD = 10_000


def timestep_embedding(t: Tensor) -> Tensor:
    """(N,) timesteps to (N, 256): cosines first, then sines, at periods from 2π to nearly 2π·10000; in fp32.

    >>> timestep_embedding(torch.tensor([0])).sum()
    tensor(128.)
    """
    half = FREQUENCIES // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float().unsqueeze(1) * torch.exp(-math.log(MAX_PERIOD) * steps / half)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def position_embedding(width: int, grid: int) -> Tensor:
    """(grid², width) fixed embedding of tokens in row order: sin and cos of the column, then of the row.

    >>> position_embedding(4, 2)[:, 0]  # the sine of the column
    tensor([0.0000, 0.8415, 0.0000, 0.8415])
    """
    steps = torch.arange(width // 4, dtype=torch.float64)
    frequencies = float(MAX_PERIOD) ** (-steps / (width // 4))
    places = torch.arange(grid, dtype=torch.float64)
    row, column = torch.meshgrid(places, places, indexing="ij")
    angles = [torch.outer(place.flatten(), frequencies) for place in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift the tokens (N, T, D) of each sample by its own (N, D)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def layer_norm(width: int) -> nn.LayerNorm:
    """Without affine parameters: `modulate` supplies them."""
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def modulation(width: int, vectors: int) -> nn.Sequential:
    """The adaLN head: condition (N, D) to `vectors` concatenated vectors (N, vectors * D)."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


class TimestepEmbedder(nn.Module):
    """Timesteps (N,) to (N, D). The sinusoids are computed in fp32, the MLP in the model's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        embedded: Tensor = self.mlp(timestep_embedding(t).to(dtype))
        return embedded


class LabelEmbedder(nn.Module):
    """Classes (N,) to (N, D); the last row of the table is the null class."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        embedded: Tensor = self.embedding_table(y)
        return embedded


class DiTBlock(nn.Module):
    """Attention and MLP on tokens (N, T, D), shifted, scaled and gated by the condition (N, D): adaLN."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.attn.fused_attn = True  # one graph whatever TIMM_FUSED_ATTN says: passes split it when they need to
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        out: Tensor = x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))
        return out


class FinalLayer(nn.Module):
    """Tokens (N, T, D) to patches (N, T, p² * out_channels)."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = layer_norm(width)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        patches: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return patches


class DiT(nn.Module):
    """Latents x (N, C, H, W), timesteps t (N,), classes y (N,) to (N, out_channels, H, W).

    The first C output channels are the noise, the other C (with `learn_sigma`) interpolate the variance.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, p = config.width, config.patch_size
        self.x_embedder = PatchEmbed(config.input_size, p, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.pos_embed = nn.Parameter(position_embedding(width, config.grid).unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(width, config.heads) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, p * p * config.out_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens: Tensor = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(t, tokens.dtype) + self.y_embedder(y)
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.unpatchify(self.final_layer(tokens, condition))

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(N, T, p² * out_channels), channels fastest, to (N, out_channels, H, W)."""
        grid, p, channels = self.config.grid, self.config.patch_size, self.config.out_channels
        cells = patches.reshape(-1, grid, grid, p, p, channels)  # N, row, column, y, x, channel
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, grid * p, grid * p)
