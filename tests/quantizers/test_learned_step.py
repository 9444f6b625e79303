"""LSQ against its equations, written out again here as one autograd function, and against finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.quantizers.learned_step import (
    LearnedStep,
    gradient_scale,
    initial,
    learned_fake_quantize,
    lsq,
    round_through,
    through_codebook,
)
from qpass_passes.quantizers.mse import Mse, rounding_error

from qpass.kernels import reference
from qpass.quantizer import codebook, fake_quantize, params_from_range, summarise
from qpass.spec import QuantSpec, parse_spec


class Plain(torch.autograd.Function):
    """Forward and backward as the papers print them, for one scale and one zero point."""

    @staticmethod
    def forward(ctx, x, s, z, low, high):
        v = x / s
        ctx.save_for_backward(v, s, z)
        ctx.bounds = low, high
        return (torch.clamp(torch.round(v) + z, low, high) - z) * s

    @staticmethod
    def backward(ctx, given):
        v, s, z = ctx.saved_tensors
        low, high = ctx.bounds
        below, above = v < low - z, v > high - z
        inside = ~(below | above)
        ds = torch.where(inside, v.round() - v, torch.where(below, low - z, high - z))
        dz = torch.where(inside, torch.zeros_like(v), -s)
        return given * inside, (given * ds).sum(), (given * dz).sum(), None, None


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_values_and_gradients_by_hand():
    """Scale 0.5, zero 1, codes 0..3: three values inside, one below, one above."""
    x = torch.tensor([0.2, -0.4, 0.9, -2.0, 5.0], requires_grad=True)
    s = torch.tensor([0.5], requires_grad=True)
    z = torch.tensor([1.0], requires_grad=True)
    out = lsq(x, s, z, 0, 3)
    assert out.tolist() == [0.0, -0.5, 1.0, -0.5, 1.0]
    out.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0, 0]
    # (0 - 0.4) + (-1 + 0.8) + (2 - 1.8), then low - zero = -1 and high - zero = 2
    assert s.grad.item() == pytest.approx(-0.4 - 0.2 + 0.2 - 1 + 2)
    assert z.grad.item() == pytest.approx(2 * -0.5)


@pytest.mark.parametrize("factor", [1.0, 0.03])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_equal_to_the_plain_formula_in_double(bits, symmetric, factor):
    """Forward equal, gradients of x, scale and zero equal to the papers'; the factor acts on the last two alone."""
    low, high = reference.levels(bits, symmetric)
    x = draw(200, seed=bits, dtype=torch.float64)
    tensors = [(x, torch.tensor(2.7 / 2**bits), torch.tensor(0.0 if symmetric else 2.0))] * 2
    grads, outs = [], []
    for f, (a, s, z) in zip((lsq, Plain.apply), tensors, strict=True):
        leaves = [t.double().clone().requires_grad_() for t in (a, s, z)]
        outs.append(f(*leaves, low, high, *((factor,) if f is lsq else ())))
        (outs[-1] * draw(200, seed=99, dtype=torch.float64)).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    assert torch.allclose(*outs, atol=1e-12)
    assert torch.allclose(grads[0][0], grads[1][0], atol=1e-12)
    for ours, theirs in zip(grads[0][1:], grads[1][1:], strict=True):
        assert torch.allclose(ours, theirs * factor, atol=1e-10)


def test_finite_differences_where_it_is_smooth():
    """Outside the range the output is (bound - zero) s: its slope in the scale is what autograd says."""
    x = torch.tensor([-50.0, 70.0], dtype=torch.float64)
    z = torch.tensor(3.0, dtype=torch.float64)
    s = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: lsq(x, s, z, 0, 15), (s,))


def test_straight_through_rounding_is_exact():
    """Forward is torch.round to the bit, for values of every size; the gradient is 1."""
    x = torch.cat([draw(1000, seed=i) * 10.0**i for i in range(-8, 7)]).requires_grad_()
    out = round_through(x)
    assert torch.equal(out, x.round())
    out.sum().backward()
    assert (x.grad == 1).all()


GRAINS = [("weight", (6, 10, 3, 3)), ("channel-first", (4, 10, 5, 5)), ("channel-last", (4, 7, 10))]


@pytest.mark.parametrize(("layout", "shape"), GRAINS, ids=[layout for layout, _ in GRAINS])
@pytest.mark.parametrize("grain", ["tensor", "channel", "token", "group:4"])
@pytest.mark.parametrize("number", ["int2", "int5", "int8", "nf4", "log2:4", "fp8-e4m3"])
def test_forward_is_fake_quantize(layout, shape, grain, number):
    """Whatever the format, granularity, symmetry and time groups: bit for bit what `simulate` computes."""
    if layout == "weight" and grain == "token":
        return
    for sign, groups in itertools.product(("sym", "asym"), (1, 3)):
        if layout == "weight" and groups > 1:
            continue
        spec = parse_spec(f"{number} {grain} {sign} time:{groups}", symmetric=True)
        x = draw(*shape, seed=1) + 0.3
        if spec.format == "log2" and not spec.symmetric:  # it has no level below 0
            x = x.abs()
        values = reference.arrange(x, layout, spec.granularity, spec.group_size)
        times = torch.arange(len(values)) % groups
        params = AbsMax().fit(lambda v=values, t=times: [(v * 0.8, t)], spec)
        group = None if layout == "weight" else times
        leaves = {n: t.clone().requires_grad_(n in ("scale", "zero")) for n, t in params.tensors.items()}
        x.requires_grad_()
        ours = learned_fake_quantize(x, spec, leaves, layout, group)
        assert torch.equal(ours, fake_quantize(x.detach(), spec, params.tensors, layout, group))
        ours.square().sum().backward()
        assert torch.isfinite(x.grad).all()
        assert (x.grad != 0).any()
        assert leaves["scale"].grad.abs().sum() > 0


@pytest.mark.parametrize("grain", ["tensor", "token", "channel", "group:4"])
def test_a_dynamic_scale_lets_the_gradient_through(grain):
    """The value is that of the dynamic quantizer, the gradient 1 everywhere, and nothing needs to be fitted."""
    spec = parse_spec(f"int4 {grain} asym dynamic", symmetric=False)
    x = draw(4, 7, 10).requires_grad_()
    out = learned_fake_quantize(x, spec, {}, "channel-last")
    assert torch.equal(out, fake_quantize(x.detach(), spec, {}, "channel-last"))
    out.sum().backward()
    assert (x.grad == 1).all()


def test_mixed_bits_and_half_precision():
    """Channels of 2, 4 and 8 bits round as simulated; a bf16 tensor comes back as bf16."""
    spec = QuantSpec(bits=(2, 4, 8), granularity="channel", symmetric=True)
    w = draw(3, 50)
    params = params_from_range(w.amin(1)[None], w.amax(1)[None], spec)
    assert torch.equal(
        learned_fake_quantize(w, spec, params.tensors, "weight"), fake_quantize(w, spec, params.tensors, "weight")
    )
    half = w.bfloat16()
    ours = learned_fake_quantize(half, spec, params.tensors, "weight")
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, fake_quantize(half, spec, params.tensors, "weight"))


def test_gradient_scale_of_the_paper():
    """g = 1 / sqrt(N Q_P) with N the values that share the step: 90 of a channel of 10 x 3 x 3, Q_P = 7."""
    spec = QuantSpec(bits=4, granularity="channel", symmetric=True)
    w = draw(6, 10, 3, 3)
    params = params_from_range(w.flatten(1).amin(1)[None], w.flatten(1).amax(1)[None], spec)
    scale = params.tensors["scale"].clone().requires_grad_()
    learned_fake_quantize(w, spec, {**params.tensors, "scale": scale}, "weight").sum().backward()
    plain = params.tensors["scale"].reshape(6, 1, 1, 1).clone().requires_grad_()
    lsq(w, plain, None, -8, 7).sum().backward()
    assert gradient_scale(90, 7) == pytest.approx(630**-0.5)
    assert torch.allclose(scale.grad[0], plain.grad.flatten() * 630**-0.5, atol=1e-5)


def test_codebook_gradients_by_hand():
    """log2 at 2 bits and scale 2: levels 0, 0.5, 1, 2. Inside ds = entry - v; above it is the last entry, 1."""
    table, thresholds = codebook(QuantSpec(format="log2", bits=2), torch.device("cpu"))
    x = torch.tensor([0.6, 3.0, -1.0], requires_grad=True)
    s = torch.tensor([2.0], requires_grad=True)
    out = through_codebook(x, s, thresholds, table)
    assert out.tolist() == [0.5, 2.0, 0.0]
    out.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]
    assert s.grad.item() == pytest.approx((0.25 - 0.3) + 1.0 + 0.0)


def test_compiles_in_one_piece():
    """No graph break: a traced copy gives the same gradients."""
    x, s = draw(4, 7), torch.tensor([[0.3]], requires_grad=True)
    z = torch.tensor([[2.0]])
    traced = torch.compile(lambda x, s: lsq(x, s, z, 0, 15, 0.1), backend="aot_eager", fullgraph=True)
    (ours,) = torch.autograd.grad(traced(x, s).square().sum(), s)
    (theirs,) = torch.autograd.grad(lsq(x, s, z, 0, 15, 0.1).square().sum(), s)
    assert torch.allclose(ours, theirs)


def stream(values, groups=None, parts=1):
    """Batches of values, as often as asked."""
    group = torch.zeros(len(values), dtype=torch.long) if groups is None else groups
    pairs = list(zip(values.chunk(parts), group.chunk(parts), strict=True))
    return lambda: iter(pairs)


def test_it_starts_at_the_papers_step():
    """2 mean|x| / sqrt(Q_P); the asymmetric zero point clips the same share on both sides."""
    x = torch.tensor([[[-1.0, 0.0, 1.0, 2.0]]])
    four, eight = QuantSpec(bits=4, symmetric=True), QuantSpec(bits=8)
    symmetric = initial(summarise(stream(x), four), four).tensors
    assert symmetric["scale"].item() == pytest.approx(2 * 1.0 / 7**0.5)
    wide = initial(summarise(stream(x), eight), eight).tensors
    assert wide["scale"].item() == pytest.approx(2 / 255**0.5)
    assert wide["zero"].item() == round(255**0.5 / 2)  # nothing is clipped: it is where 0 has to be


@pytest.mark.parametrize("init", [None, AbsMax(), Mse(norm=2.0)])
@pytest.mark.parametrize("text", ["int2 channel", "int4 tensor", "int8 token", "int3 group:4", "nf4 channel"])
@pytest.mark.parametrize("sign", ["sym", "asym"])
def test_never_worse_than_its_start(init, text, sign):
    """For every parameter set, nor than the full range; with 4 bits or fewer it has less error than that in sum."""
    spec = parse_spec(f"{text} {sign} time:2", symmetric=True)
    x = draw(8, 10, 30, seed=3) ** 3
    values = reference.arrange(x, "channel-first", spec.granularity, spec.group_size)
    batches = stream(values, torch.arange(8) % 2, parts=2)
    summary = summarise(batches, spec)
    first = initial(summary, spec) if init is None else init.fit(batches, spec)
    params = LearnedStep(init=init).fit(batches, spec)
    errors = [rounding_error(summary, p, spec, 2.0) for p in (params, first, AbsMax().fit(batches, spec))]
    assert (errors[0] <= errors[1]).all()
    assert (errors[0] <= errors[2] * (1 + 1e-6)).all()
    if spec.widest <= 4:
        assert errors[0].sum() < errors[2].sum()
    if not spec.symmetric and spec.kind == "affine":
        assert params.tensors["zero"].min() >= 0
        assert params.tensors["zero"].max() <= 2**spec.widest - 1


@pytest.mark.parametrize("outlier", [50.0, 100.0, 300.0])
def test_the_full_range_where_it_is_better(outlier):
    """A few values far outside the paper's first step, at eight bits: clipping them would cost more than all else."""
    x = draw(1, 1, 50_000, seed=1)
    x[..., :5] = outlier
    spec = QuantSpec(bits=8)
    summary = summarise(stream(x), spec, exact_below=1 << 18, most=1 << 20)
    errors = [
        rounding_error(summary, how.fit(stream(x), spec), spec, 2.0).item()
        for how in (LearnedStep(iterations=50), AbsMax())
    ]
    assert errors[0] <= errors[1]
    assert errors[1] < rounding_error(summary, initial(summary, spec), spec, 2.0).item()


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_it_finds_what_a_search_finds(bits):
    """From the full range, on normal values: an error within 10 % of the best of 2,000 scales tried one by one."""
    x = draw(1, 1, 4000, seed=bits)
    spec = QuantSpec(bits=bits, symmetric=True)
    params = LearnedStep(init=AbsMax(), iterations=500).fit(stream(x), spec)
    summary = summarise(stream(x), spec)
    found = rounding_error(summary, params, spec, 2.0).item()
    full = x.abs().amax() / 2 ** (bits - 1)
    low, high = reference.levels(bits, True)
    tried = [
        (((x / s).round().clamp(low, high) * s - x) ** 2).sum().item()
        for s in full * torch.linspace(0.1, 1.2, 2000)
    ]
    assert found <= min(tried) * 1.1
