"""The rounding that learns, with backward passes written by hand: values and gradients of the plain formulas.

`lsq`, `soft_quantize` and `regularizer` say what is computed. Left to autograd, their chains of elementwise operations
took most of an iteration: here each goes over memory a third as often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpass_passes.soft_rounding import GAMMA, ZETA

SPREAD = ZETA - GAMMA


def rounded_input(
    x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int, mask: Tensor | None = None
) -> Tensor:
    """`lsq`, with gradients for x and the scale; where the mask is 0 and not 1, x stays as it is (QDrop)."""
    found: Tensor = _RoundedInput.apply(x, scale, zero, low, high, mask)
    return found


def through(x: Tensor, rounded: Tensor, mask: Tensor | None = None) -> Tensor:
    """`rounded`, but x where the mask is 0; the gradient passes straight to x."""
    found: Tensor = _Through.apply(x, rounded, mask)
    return found


def soft_weight(v: Tensor, bottom: Tensor, room: Tensor) -> Tensor:
    """bottom + h(V) room: `soft_quantize`, whose code goes from that of `bottom` to the next unless it is clipped."""
    found: Tensor = _SoftWeight.apply(v, bottom, room)
    return found


@torch.no_grad()
def press(v: Tensor, beta: float, strength: float) -> None:
    """Add the gradient of `strength * regularizer(v, beta)` to that of v.

    With a = sigmoid(V) and u = 2 h - 1: -beta |u|^(beta - 1) sign(u) 2 (zeta - gamma) a (1 - a), where |u| < 1.
    """
    a = v.sigmoid()
    u = a.mul(2 * SPREAD).add_(2 * GAMMA - 1)
    slope = u.abs().pow_(beta - 1).copysign_(u)
    slope = torch.ops.aten.hardtanh_backward(slope, u, -1.0, 1.0)
    slope = torch.ops.aten.sigmoid_backward(slope, a).mul_(-2 * SPREAD * beta * strength)
    v.grad = slope if v.grad is None else v.grad.add_(slope)


def random_mask(x: Tensor, share: float) -> Tensor:
    """0 for a random share of x's values, which counts in 256ths, and 1 for the others, in x's own dtype.

    From bytes, eight of a draw: a draw for each value took longer than the rounding. And `lerp` by numbers, which
    gives either end exactly, is twenty times as fast on a processor as `where` by truth values at random.
    """
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    return (draws.view(torch.uint8)[: x.numel()] >= round(share * 256)).to(x.dtype).view(x.shape)


class _RoundedInput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int, mask: Tensor | None
    ) -> Tensor:
        y = x.to(_wide(x)) * scale.reciprocal()
        y = y.round_().clamp_(low, high) if zero is None else y.round_().add_(zero).clamp_(low, high).sub_(zero)
        y = y.mul_(scale)
        ctx.save_for_backward(x, scale, zero, y, mask)
        ctx.bounds = low, high
        found = y.to(x.dtype)
        return found if mask is None else torch.lerp(x, found, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero, y, mask = ctx.saved_tensors
        wide, values = grads[0].to(y.dtype), x.to(y.dtype)
        mask = None if mask is None else mask.to(y.dtype)
        theirs = wide if mask is None else wide * mask
        codes = values * scale.reciprocal()
        codes = codes if zero is None else codes.add_(zero)
        inside = torch.ops.aten.hardtanh_backward(theirs, codes, *ctx.bounds)
        of_scale = None
        if ctx.needs_input_grad[1]:
            # rounding is homogeneous, Q(ax; as) = a Q(x; s), so s dQ/ds = Q - x dQ/dx
            of_scale = theirs.mul(y).addcmul_(inside, values, value=-1).sum_to_size(scale.shape) / scale
        if mask is not None:
            inside = torch.lerp(wide, inside, mask)
        return inside.to(x.dtype), of_scale, None, None, None, None


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, mask: Tensor | None) -> Tensor:
        found = rounded.to(x.dtype)
        return found if mask is None else torch.lerp(x, found, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


class _SoftWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, bottom: Tensor, room: Tensor) -> Tensor:
        a = v.sigmoid()
        ctx.save_for_backward(a, room)
        return torch.addcmul(bottom, a.mul(SPREAD).add_(GAMMA).clamp_(0, 1), room)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, room = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grads[0] * room, a, -GAMMA / SPREAD, (1 - GAMMA) / SPREAD)
        return torch.ops.aten.sigmoid_backward(inside, a).mul_(SPREAD), None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
