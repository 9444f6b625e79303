"""Backward passes written by hand, held to autograd of the plain formulas."""

from __future__ import annotations

import pytest
import torch
from qpass_passes.quantizers.learned_step import lsq
from qpass_passes.reconstruction.gradients import press, random_mask, rounded_input, soft_weight, through
from qpass_passes.soft_rounding import ends, regularizer, soft_quantize

SHAPES = {"tensor": (1, 1, 1, 1), "row": (4, 1, 1, 1), "channel": (1, 3, 1, 1), "token": (4, 1, 5, 5)}


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


def both(function, other, x, scale):
    """Value and gradients of x and the scale, of either function, for the same gradient of the output."""
    found = []
    for each in (function, other):
        a, s = x.clone().requires_grad_(), scale.clone().requires_grad_()
        y = each(a, s)
        y.backward(torch.cos(torch.arange(y.numel(), dtype=torch.float32)).reshape(y.shape).to(y.dtype))
        found.append((y.detach(), a.grad, s.grad))
    return found


def case(shape, symmetric, dtype=torch.float32):
    """Values of which many are outside."""
    x = 3 * torch.randn(4, 3, 5, 5)
    scale = 0.2 + 0.1 * torch.rand(shape)
    zero = None if symmetric else torch.randint(3, 12, shape).float()
    low, high = (-8, 7) if symmetric else (0, 15)
    return x.to(dtype), scale, zero, low, high


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rounds_as_lsq_and_learns_as_lsq(shape, symmetric):
    """The same bits; gradients up to the order of sums."""
    x, scale, zero, low, high = case(shape, symmetric)
    ours, theirs = both(
        lambda a, s: rounded_input(a, s, zero, low, high), lambda a, s: lsq(a, s, zero, low, high), x, scale
    )
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-4)
    assert 0.1 < (theirs[1] == 0).float().mean() < 0.9  # both sides of the bounds were met


def test_in_bfloat16():
    """Under autocast x and the output are in bf16; the scale's gradient is summed in fp32."""
    x, scale, zero, low, high = case((1, 1, 1, 1), False, torch.bfloat16)
    ours, theirs = both(
        lambda a, s: rounded_input(a, s, zero, low, high), lambda a, s: lsq(a, s, zero, low, high), x, scale
    )
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_left_as_it_is_passes_through(dtype):
    """Where the mask is 0: x to the bit, its gradient whole, and nothing for the scale."""
    x, scale, zero, low, high = case((4, 1, 1, 1), False, dtype)
    mask = random_mask(x, 0.5)
    ours, theirs = both(
        lambda a, s: rounded_input(a, s, zero, low, high, mask),
        lambda a, s: torch.where(mask == 0, a, lsq(a, s, zero, low, high)),
        x, scale,
    )  # fmt: skip
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-3, atol=1e-3)


def test_straight_through():
    """Any rounding, with the gradient of none; left as it is where the mask is 0."""
    x = torch.randn(4, 6, requires_grad=True)
    mask = random_mask(x, 0.5)
    y = through(x, x.detach().round(), mask)
    y.backward(torch.arange(24.0).reshape(4, 6))
    assert torch.equal(y, torch.where(mask == 0, x, x.round()))
    assert torch.equal(x.grad, torch.arange(24.0).reshape(4, 6))


@pytest.mark.parametrize("symmetric", [True, False])
def test_soft_weights(symmetric):
    """Value and V's gradient of the plain formula, where weights are clipped and where V has settled, too."""
    w, scale = torch.randn(8, 3, 3, 3), 0.1 + 0.1 * torch.rand(8, 1, 1, 1)
    zero = torch.zeros(8, 1, 1, 1) if symmetric else torch.randint(3, 12, (8, 1, 1, 1)).float()
    low, high = (-8, 7) if symmetric else (0, 15)
    found = []
    for function in (
        lambda v: soft_weight(v, *ends(w, scale, zero, low, high)),
        lambda v: soft_quantize(w, v, scale, zero, low, high),
    ):
        v = (3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
        y = function(v)
        y.backward(torch.cos(torch.arange(y.numel(), dtype=torch.float32)).reshape(y.shape))
        found.append((y.detach(), v.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert ((w / scale + zero) > high).any()
    assert (found[1][1] == 0).any()


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
def test_the_press_to_either_side(beta):
    """It adds what autograd adds for the regularizer, whether there is a gradient already or none."""
    v = (2 * torch.randn(1000)).requires_grad_()
    (0.01 * regularizer(v, beta)).backward()
    wanted = v.grad.clone()
    v.grad = None
    press(v, beta, 0.01)
    torch.testing.assert_close(v.grad, wanted, rtol=1e-4, atol=1e-7)
    press(v, beta, 0.01)
    torch.testing.assert_close(v.grad, 2 * wanted, rtol=1e-4, atol=1e-7)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_random_share(share):
    """0 and 1 only, as often as said within 5 deviations, and neighbours do not go together."""
    mask = random_mask(torch.empty(99, 1001), share)
    assert mask.unique().tolist() == [0.0, 1.0]
    deviation = (share * (1 - share) / mask.numel()) ** 0.5
    assert abs(float((mask == 0).float().mean()) - share) < 5 * deviation
    flat = mask.flatten() - mask.mean()
    for lag in range(1, 17):
        assert abs(float((flat[:-lag] * flat[lag:]).mean())) < 5 * share * (1 - share) / mask.numel() ** 0.5


def test_compiles():
    """A compiled block learns the same."""
    x, scale, zero, low, high = case((1, 3, 1, 1), False)
    plain = lambda a, s: rounded_input(a, s, zero, low, high)  # noqa: E731
    ours, theirs = both(torch.compile(plain, backend="aot_eager", fullgraph=True), plain, x, scale)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
