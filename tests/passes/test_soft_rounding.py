"""AdaRound's functions against its equations, written out again here, and against autograd in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from qpass_passes.soft_rounding import (
    again,
    annealed,
    base,
    ends,
    harden,
    rectified_sigmoid,
    regularizer,
    soft_quantize,
    start,
)

from qpass.kernels import reference
from qpass.quantizer import params_from_range, quantize
from qpass.spec import QuantSpec

SHAPE = (6, 10, 3, 3)


def weight(seed=0, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 0.1


def fitted(w, bits, symmetric, granularity):
    """The spec, its parameters shaped to broadcast against the weight, and its bounds."""
    size = 4 if granularity == "group" else 0
    spec = QuantSpec(bits=bits, granularity=granularity, group_size=size, symmetric=symmetric)
    values = reference.arrange(w, "weight", granularity, size)
    params = params_from_range(values.amin(2), values.amax(2), spec)
    scale, zero = (reference.spread(params.tensors[n], w, "weight", granularity, size) for n in ("scale", "zero"))
    return spec, params, scale, zero, reference.levels(bits, symmetric)


def plain(w, v, s, z, low, high):
    """One number by equations 22 and 23, in Python's own arithmetic."""
    h = min(1.0, max(0.0, 1.2 / (1 + math.exp(-v)) - 0.1))
    return (min(high, max(low, math.floor(w / s) + h + z)) - z) * s


def test_rectified_sigmoid_by_hand():
    """It reaches 0 and 1 where sigmoid is 1/12 and 11/12, and stays there."""
    edge = math.log(11)
    v = torch.tensor([-5.0, -edge - 0.01, -math.log(3), 0.0, math.log(3), edge + 0.01, 5.0], dtype=torch.float64)
    expected = torch.tensor([0, 0, 0.2, 0.5, 0.8, 1, 1], dtype=torch.float64)
    assert torch.allclose(rectified_sigmoid(v), expected, atol=1e-12)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_it_starts_at_the_weight(bits, symmetric, granularity):
    """Before anything is learned the soft weight is the float one, wherever the range holds it."""
    w = weight(bits)
    _, _, scale, zero, (low, high) = fitted(w, bits, symmetric, granularity)
    soft = soft_quantize(w, start(w, scale), scale, zero, low, high)
    held = ((w / scale + zero) >= low) & ((w / scale + zero) <= high)
    assert held.float().mean() > 0.9
    assert ((soft - w).abs() / scale)[held].max() < 1e-5 * 2**bits
    assert soft.dtype == w.dtype


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_hardened_at_the_start_is_nearest_rounding(bits, symmetric, granularity):
    """h >= 0.5 where the fraction is: the codes are those of plain rounding, ties apart, and in range whatever V."""
    w = weight(bits)
    spec, params, scale, zero, (low, high) = fitted(w, bits, symmetric, granularity)
    codes = harden(w, start(w, scale), scale, zero, low, high)
    assert torch.equal(codes, quantize(w, spec, params.tensors, "weight").float())
    for v in (-9.0, 9.0):
        codes = harden(w, torch.full_like(w, v), scale, zero, low, high)
        assert torch.equal(codes, codes.round())
        assert codes.min() >= low
        assert codes.max() <= high


def test_soft_values_are_the_equations():
    """Against numbers computed one by one, for arbitrary V."""
    w = weight(3, torch.float64)
    v = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2
    s, z = torch.tensor(0.037, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    ours = soft_quantize(w, v, s, z, 0, 15)
    theirs = [
        plain(a, b, 0.037, 5, 0, 15) for a, b in zip(w.flatten().tolist(), v.flatten().tolist(), strict=True)
    ]
    assert torch.allclose(ours.flatten(), torch.tensor(theirs, dtype=torch.float64), atol=1e-12)


def test_gradients_are_those_of_the_functions():
    """Away from the corners, V's and the scale's gradients equal finite differences, regularizer included."""
    w = torch.tensor([0.31, -0.52, 0.14, 0.88], dtype=torch.float64)
    v = torch.tensor([0.3, -1.0, 1.5, 0.01], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([4.0], dtype=torch.float64)

    def loss(v, s):
        return soft_quantize(w, v, s, z, 0, 15).pow(2).sum() + 0.01 * regularizer(v, 3.0)

    assert torch.autograd.gradcheck(loss, (v, s))
    clipped = torch.tensor([3.0, -3.0], dtype=torch.float64, requires_grad=True)
    rectified_sigmoid(clipped).sum().backward()
    assert clipped.grad.tolist() == [0.0, 0.0]


def test_what_the_range_clips_learns_nothing():
    """A weight above the highest code has no gradient: rounding it up or down is the same."""
    v = torch.zeros(2, requires_grad=True)
    one = torch.ones(())
    soft_quantize(torch.tensor([9.3, 0.3]), v, one, torch.zeros(()), 0, 7).sum().backward()
    assert v.grad[0] == 0
    assert v.grad[1] > 0


@pytest.mark.parametrize("beta", [2.0, 8.0, 20.0])
def test_regularizer_by_hand(beta):
    """One term for each h: 0 at 0 and 1, 1 - 0.6^beta at h = 0.2 and 0.8, 1 at a half."""
    v = torch.tensor([-9.0, 9.0, 0.0, -math.log(3), math.log(3)], dtype=torch.float64)
    assert regularizer(v, beta).item() == pytest.approx(1 + 2 * (1 - 0.6**beta))


def test_annealing_by_hand():
    """Nothing for 4,000 of 20,000 steps, then from 20 to 2 in a line, whatever options say otherwise."""
    assert annealed(3999, 20000) is None
    assert annealed(4000, 20000) == 20.0
    assert annealed(12000, 20000) == 11.0
    assert annealed(20000, 20000) == 2.0
    assert annealed(0, 10, warmup=0.0) == 20.0
    assert annealed(5, 10, first=10.0, last=4.0, warmup=0.0) == 7.0


def test_learning_moves_every_weight_to_a_code():
    """Adam on output error and regularizer ends with h at 0 or 1 and less output error than nearest rounding."""
    generator = torch.Generator().manual_seed(7)
    w = torch.randn(8, 16, generator=generator)
    x = torch.randn(256, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    spec = QuantSpec(bits=3, granularity="channel", symmetric=True)
    params = params_from_range(w.amin(1)[None], w.amax(1)[None], spec)
    scale = params.tensors["scale"].reshape(8, 1)
    zero, steps = torch.zeros(()), 1000
    v = start(w, scale).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        loss = ((soft_quantize(w, v, scale, zero, -4, 3) - w) @ x.T).pow(2).sum(0).mean()
        if (beta := annealed(step, steps)) is not None:
            loss = loss + 2.0 * regularizer(v, beta)
        loss.backward()
        optimizer.step()
    h = rectified_sigmoid(v)
    assert ((h < 0.01) | (h > 0.99)).float().mean() > 0.95

    def error(codes):
        return ((codes * scale - w) @ x.T).pow(2).mean()

    nearest = quantize(w, spec, params.tensors, "weight").float()
    assert error(harden(w, v, scale, zero, -4, 3)) < 0.7 * error(nearest)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_codes_that_learn_again_are_those_that_were_there(granularity, symmetric):
    """Whatever they are, hard rounding gives them back, and soft rounding is at most 0.15 of a level from them."""
    w, source = weight(1), torch.Generator().manual_seed(2)
    _, _, scale, zero, (low, high) = fitted(w, 4, symmetric, granularity)
    codes = torch.randint(int(low), int(high) + 1, SHAPE, generator=source)
    down = base(w, scale, zero, codes, low, high)
    v = again(w, scale, zero, codes, 0.15, down)
    assert torch.equal(harden(w, v, scale, zero, low, high, down), codes.float())
    level = soft_quantize(w, v, scale, zero, low, high, down) / scale + zero
    assert (level - codes).abs().max() < 0.15 + 1e-4
    bottom, room = ends(w, scale, zero, low, high, down)
    assert torch.allclose((bottom + rectified_sigmoid(v) * room) / scale + zero, level, atol=1e-4)


def test_codes_next_to_the_weight_need_no_base():
    """Up or down, clipped or not, they are what AdaRound's own formula has: floor(w / s) and one more."""
    w = 2 * weight(3)  # so that some are beyond the range
    spec, params, scale, zero, (low, high) = fitted(weight(3), 3, True, "channel")
    nearest = quantize(w, spec, params.tensors, "weight")
    up = torch.rand(SHAPE, generator=torch.Generator().manual_seed(4)) < 0.5
    either = ((w / scale).floor() + up).clamp(low, high)
    assert base(w, scale, zero, nearest, low, high) is None
    assert base(w, scale, zero, either, low, high) is None
    assert (either == high).any()
