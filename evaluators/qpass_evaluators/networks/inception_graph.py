"""Inception-v3 as TensorFlow's graph of 2015-12-05 has it: what FID, sFID and Inception Score are defined on.

Szegedy et al., "Rethinking the Inception Architecture" (2016), with three differences that matter: average pools do
not count their padding (A, C and the first E block), the last block pools by maximum, and batch-norm has no scale.
Written for batch-norm already folded into the convolutions; names are torchvision's. Shapes: C x H x W.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass_evaluators.networks.convolution import Convolution, Pair

HALVING = frozenset({  # stride 2, no padding
    "Conv2d_1a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3", "Mixed_7a.branch3x3_2", "Mixed_7a.branch7x7x3_4"
})  # fmt: skip
SHRINKING = frozenset({"Conv2d_2a_3x3", "Conv2d_4a_3x3"})  # stride 1, no padding

# name: output channels, input channels, height and width of the kernel
KERNELS: dict[str, tuple[int, int, int, int]] = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}
for _block, _inside, _pooled in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
    KERNELS |= {
        f"{_block}.branch1x1": (64, _inside, 1, 1),
        f"{_block}.branch5x5_1": (48, _inside, 1, 1),
        f"{_block}.branch5x5_2": (64, 48, 5, 5),
        f"{_block}.branch3x3dbl_1": (64, _inside, 1, 1),
        f"{_block}.branch3x3dbl_2": (96, 64, 3, 3),
        f"{_block}.branch3x3dbl_3": (96, 96, 3, 3),
        f"{_block}.branch_pool": (_pooled, _inside, 1, 1),
    }
KERNELS |= {
    "Mixed_6a.branch3x3": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
    "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
    "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
}
for _block, _width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
    KERNELS |= {
        f"{_block}.branch1x1": (192, 768, 1, 1),
        f"{_block}.branch7x7_1": (_width, 768, 1, 1),
        f"{_block}.branch7x7_2": (_width, _width, 1, 7),
        f"{_block}.branch7x7_3": (192, _width, 7, 1),
        f"{_block}.branch7x7dbl_1": (_width, 768, 1, 1),
        f"{_block}.branch7x7dbl_2": (_width, _width, 7, 1),
        f"{_block}.branch7x7dbl_3": (_width, _width, 1, 7),
        f"{_block}.branch7x7dbl_4": (_width, _width, 7, 1),
        f"{_block}.branch7x7dbl_5": (192, _width, 1, 7),
        f"{_block}.branch_pool": (192, 768, 1, 1),
    }
KERNELS |= {
    "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
    "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
    "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
}
for _block, _inside in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
    KERNELS |= {
        f"{_block}.branch1x1": (320, _inside, 1, 1),
        f"{_block}.branch3x3_1": (384, _inside, 1, 1),
        f"{_block}.branch3x3_2a": (384, 384, 1, 3),
        f"{_block}.branch3x3_2b": (384, 384, 3, 1),
        f"{_block}.branch3x3dbl_1": (448, _inside, 1, 1),
        f"{_block}.branch3x3dbl_2": (384, 448, 3, 3),
        f"{_block}.branch3x3dbl_3a": (384, 384, 1, 3),
        f"{_block}.branch3x3dbl_3b": (384, 384, 3, 1),
        f"{_block}.branch_pool": (192, _inside, 1, 1),
    }

# height and width of what goes into the convolutions whose name starts so; the first that fits
EDGES = {
    "Conv2d_1a": 299, "Conv2d_2a": 149, "Conv2d_2b": 147, "Conv2d": 73,
    "Mixed_5": 35, "Mixed_6a": 35, "Mixed_6": 17, "Mixed_7a": 17, "Mixed_7": 8,
}  # fmt: skip

Graph = Mapping[str, Convolution]


def convolution(name: str, weight: Tensor, bias: Tensor, batch: int) -> Convolution:
    """The convolution of that name in the graph, for batches of about that size."""
    inside, height, width = weight.shape[1:]
    edge = next(edge for start, edge in EDGES.items() if name.startswith(start))
    padding: Pair = (0, 0) if name in HALVING | SHRINKING else (height // 2, width // 2)
    return Convolution(
        weight, bias,
        stride=2 if name in HALVING else 1, padding=padding, relu=name not in POOLED_AFTER,
        inside=(batch, inside, edge, edge),
    )  # fmt: skip


def stem(conv: Graph, x: Tensor) -> Tensor:
    """3 x 299 x 299 to 192 x 35 x 35."""
    x = _follow(conv, x, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
    x = F.max_pool2d(x, 3, 2)
    x = _follow(conv, x, "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    return F.max_pool2d(x, 3, 2)


def body(conv: Graph, x: Tensor) -> tuple[Tensor, Tensor]:
    """192 x 35 x 35 to the mean of the last block (2048) and the start of the spatial map (2023), both in fp32.

    The spatial features are the first 7 channels of `mixed_6/conv:0`, 17 x 17, flattened with channels last as in
    ADM's evaluator (Fréchet distances would not notice another order, stored statistics would).
    """
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _a(conv, block, x)
    x = _b(conv, "Mixed_6a", x)
    for block in ("Mixed_6b", "Mixed_6c"):
        x = torch.cat(_c(conv, block, x), 1)
    branches = _c(conv, "Mixed_6d", x)
    spatial = branches[0][:, :7].permute(0, 2, 3, 1).float().flatten(1)
    x = torch.cat(_c(conv, "Mixed_6e", torch.cat(branches, 1)), 1)
    x = _d(conv, "Mixed_7a", x)
    x = torch.cat(_e(conv, "Mixed_7b", x), 1)
    # the mean of each branch alone: the last block's map is never put together
    return torch.cat([y.float().mean((2, 3)) for y in _e(conv, "Mixed_7c", x)], 1), spatial


# A 1 x 1 convolution and a mean over the same window commute, so these convolve first and average the fewer
# channels they leave; their ReLU comes last. It holds at the border because padding is not counted.
POOLED_AFTER = frozenset(n for n in KERNELS if n.endswith("branch_pool")) - {"Mixed_7c.branch_pool"}


def _pool(conv: Graph, block: str, x: Tensor) -> Tensor:
    name = f"{block}.branch_pool"
    if name in POOLED_AFTER:
        return F.avg_pool2d(conv[name](x), 3, 1, 1, count_include_pad=False).relu_()
    return conv[name](F.max_pool2d(x, 3, 1, 1))


def _follow(conv: Graph, x: Tensor, *names: str) -> Tensor:
    for name in names:
        x = conv[name](x)
    return x


def _numbered(conv: Graph, x: Tensor, branch: str, count: int) -> Tensor:
    """The convolutions branch_1 to branch_count, one after the other."""
    return _follow(conv, x, *(f"{branch}_{i}" for i in range(1, count + 1)))


def _a(conv: Graph, block: str, x: Tensor) -> Tensor:
    return torch.cat(
        [
            conv[f"{block}.branch1x1"](x),
            _numbered(conv, x, f"{block}.branch5x5", 2),
            _numbered(conv, x, f"{block}.branch3x3dbl", 3),
            _pool(conv, block, x),
        ],
        1,
    )


def _b(conv: Graph, block: str, x: Tensor) -> Tensor:
    deep = _numbered(conv, x, f"{block}.branch3x3dbl", 3)
    return torch.cat([conv[f"{block}.branch3x3"](x), deep, F.max_pool2d(x, 3, 2)], 1)


def _c(conv: Graph, block: str, x: Tensor) -> list[Tensor]:
    return [
        conv[f"{block}.branch1x1"](x),
        _numbered(conv, x, f"{block}.branch7x7", 3),
        _numbered(conv, x, f"{block}.branch7x7dbl", 5),
        _pool(conv, block, x),
    ]


def _d(conv: Graph, block: str, x: Tensor) -> Tensor:
    deep = _numbered(conv, x, f"{block}.branch7x7x3", 4)
    return torch.cat([_numbered(conv, x, f"{block}.branch3x3", 2), deep, F.max_pool2d(x, 3, 2)], 1)


def _e(conv: Graph, block: str, x: Tensor) -> list[Tensor]:
    flat = conv[f"{block}.branch3x3_1"](x)
    deep = _numbered(conv, x, f"{block}.branch3x3dbl", 2)
    return [
        conv[f"{block}.branch1x1"](x),
        conv[f"{block}.branch3x3_2a"](flat),
        conv[f"{block}.branch3x3_2b"](flat),
        conv[f"{block}.branch3x3dbl_3a"](deep),
        conv[f"{block}.branch3x3dbl_3b"](deep),
        _pool(conv, block, x),
    ]
