"""AdaRound's soft rounding: each weight learns whether it is rounded up or down (2004.10568, section 3).

With w the weight and s its scale, codes are floor(w / s) + h(V) + zero, clipped to the format's range, and h goes
from the fractional part of w / s to 0 or 1. These are functions and not a `Quantizer`: V is learned from a layer's
inputs and outputs, which `Quantizer.fit` never sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.kernels.reference import clip

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), equation 23.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def start(weight: Tensor, scale: Tensor) -> Tensor:
    """The V at which soft rounding gives the weight back; `scale` broadcasts against it.

    >>> rectified_sigmoid(start(torch.tensor([0.5, -0.25]), torch.tensor(1.0)))
    tensor([0.5000, 0.7500])
    """
    ratio = _ratio(weight, scale)
    return _inverse(ratio - ratio.floor())


def base(
    weight: Tensor, scale: Tensor, zero: Tensor, codes: Tensor, low: int | Tensor, high: int | Tensor
) -> Tensor | None:
    """What codes that were learned are up or down from; None where that is floor(w / s) of all, as AdaRound has it.

    GPTQ and polishing leave codes that are neither the floor nor the ceiling. They go on from where they are: one below
    the floor counts as down, one above the ceiling as up.

    >>> given = torch.tensor([0.5, 0.5, 0.5]), torch.tensor(1.0), torch.tensor(0.0)
    >>> base(*given, torch.tensor([0, 1, 1]), -4, 3)
    >>> base(*given, torch.tensor([-2, 1, 3]), -4, 3)
    tensor([-2.,  0.,  2.])
    """
    floor = _ratio(weight, scale).floor()
    near = (codes == clip(floor + zero, low, high)) | (codes == clip(floor + 1 + zero, low, high))
    if bool(near.all()):
        return None
    steps = (codes - zero).to(floor.dtype)
    return torch.where(near, floor, steps - (steps > floor).to(floor.dtype))


def again(
    weight: Tensor, scale: Tensor, zero: Tensor, codes: Tensor, near: float, base: Tensor | None = None
) -> Tensor:
    """The V of codes that were learned, at h(V) = `near` where they are down and 1 - `near` where up.

    There the gradient reaches it again: at 0 and 1 it does not.

    >>> given = torch.tensor([0.5, 0.5]), torch.tensor(1.0), torch.tensor(0.0)
    >>> rectified_sigmoid(again(*given, torch.tensor([0, 1]), 0.15))
    tensor([0.1500, 0.8500])
    """
    up = codes - zero > _down(weight, scale, base)
    return _inverse(torch.where(up, 1 - near, near))


def soft_quantize(
    weight: Tensor, v: Tensor, scale: Tensor, zero: Tensor, low: int | Tensor, high: int | Tensor,
    base: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """s (clip(floor(w / s) + h(V) + zero, low, high) - zero), equation 22: differentiable in V, scale and zero.

    All arguments broadcast against the weight. Its dtype is that of the result. A `base` stands in for floor(w / s).
    """
    codes = clip(_down(weight, scale, base) + rectified_sigmoid(v) + zero, low, high)
    return ((codes - zero) * scale).to(weight.dtype)


def ends(
    weight: Tensor, scale: Tensor, zero: Tensor, low: int | Tensor, high: int | Tensor, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`soft_quantize` at h = 0, and how much more it is at h = 1: between them it is a line in h.

    >>> ends(torch.tensor([0.75, 9.0]), torch.tensor(0.5), torch.tensor(0.0), 0, 7)
    (tensor([0.5000, 3.5000]), tensor([0.5000, 0.0000]))
    """
    floor = _down(weight, scale, base) + zero
    down, up = clip(floor, low, high), clip(floor + 1, low, high)
    return (down - zero) * scale, (up - down) * scale


def harden(
    weight: Tensor, v: Tensor, scale: Tensor, zero: Tensor, low: int | Tensor, high: int | Tensor,
    base: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The codes in the end: up where h(V) >= 0.5, which is where V >= 0, else down. Whole numbers, as floats."""
    return clip(_down(weight, scale, base) + (v >= 0) + zero, low, high)


def regularizer(v: Tensor, beta: float) -> Tensor:
    """Sum of 1 - |2 h(V) - 1|^beta, equation 24: 0 where every h is 0 or 1, and 1 for each h of 0.5.

    >>> regularizer(torch.tensor([-9.0, 0.0, 9.0]), 2.0)
    tensor(1.)
    """
    return (1 - (2 * rectified_sigmoid(v) - 1).abs().pow(beta)).sum()


def annealed(
    step: int, steps: int, *, first: float = 20.0, last: float = 2.0, warmup: float = 0.2
) -> float | None:
    """The regularizer's beta at a step: from `first` to `last` in a line; None in the warm-up, which has no term.

    >>> [annealed(step, 10) for step in (0, 1, 2, 6, 10)]
    [None, None, 20.0, 11.0, 2.0]
    """
    begin = warmup * steps
    if step < begin:
        return None
    return last + (first - last) * max(0.0, 1 - (step - begin) / (steps - begin))


def _inverse(h: Tensor) -> Tensor:
    """The V of an h between 0 and 1."""
    return ((h - GAMMA) / (ZETA - GAMMA)).logit()


def _down(weight: Tensor, scale: Tensor, base: Tensor | None) -> Tensor:
    return _ratio(weight, scale).floor() if base is None else base


def _ratio(weight: Tensor, scale: Tensor) -> Tensor:
    """w / s as every quantizer of qpass takes it: by the scale's reciprocal, at fp32 or better."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) * scale.reciprocal()
