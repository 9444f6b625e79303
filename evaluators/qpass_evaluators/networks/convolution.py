"""One convolution with its bias and ReLU in one call, its weight laid out beforehand as the kernel wants it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


class Convolution:
    """w * x + b, and the ReLU of it, of channels-last x: B x C x H x W.

    On a CPU this calls the operators that torch.compile would emit: oneDNN with the ReLU fused and the weight packed
    once. Calling them directly needs no C++ compiler and no time to compile. They are not part of torch's documented
    interface, so where they are missing, and on other devices, the plain operators do the same.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: int,
        padding: Pair,
        inside: tuple[int, ...],
        relu: bool = True,
    ) -> None:
        """`inside` is the usual shape of x, for which the weight is laid out. Others work too, and may take longer:
        a layout that does not fit is changed at every call, at several times the cost of the convolution."""
        self.stride, self.padding, self.relu, self.bias = (stride, stride), padding, relu, bias
        self.packed = packs(weight.device, weight.dtype)
        if self.packed:
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self.weight: Tensor = pack(weight, padding, self.stride, (1, 1), 1, inside)
        else:
            self.weight = weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            after = "relu" if self.relu else "none"
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, (1, 1), 1, after, [], ""
            )
            return y
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return y.relu_() if self.relu else y


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators are there for tensors like these."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.mkldnn, n) for n in ("_reorder_convolution_weight", "_convolution_pointwise")):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
