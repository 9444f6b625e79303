"""Fitted ranges against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.quantizers.adaptive_log import AdaptiveLog
from qpass_passes.quantizers.learned_step import LearnedStep
from qpass_passes.quantizers.mse import Mse
from qpass_passes.quantizers.percentile import Percentile

from qpass.kernels import reference
from qpass.quantizer import dequantize, quantize, summarise
from qpass.spec import QuantSpec, parse_spec

EVERY = [
    AbsMax(),
    AdaptiveLog(),
    LearnedStep(iterations=120),
    LearnedStep(init=Mse(), iterations=10),
    Mse(),
    Percentile(q=0.999),
]


def stream(values, groups=None, parts=1):
    """Batches of values, as often as asked."""
    group = torch.zeros(len(values), dtype=torch.long) if groups is None else groups
    pairs = list(zip(values.chunk(parts), group.chunk(parts), strict=True))
    return lambda: iter(pairs)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3


def test_absmax_clips_nothing():
    """Asymmetric: scale (max - min) / 255. Symmetric: the grid reaches the larger side."""
    x = draw(6, 2, 50)
    params = AbsMax().fit(stream(x, parts=3), QuantSpec(bits=8)).tensors
    span = x.amax((0, 2)) - x.amin((0, 2))
    assert torch.allclose(params["scale"][0], span / 255)
    sym = AbsMax().fit(stream(x), QuantSpec(bits=4, symmetric=True)).tensors
    assert torch.allclose(sym["scale"][0], torch.maximum(x.amax((0, 2)) / 7, -x.amin((0, 2)) / 8))


def brute(x, bits, symmetric, norm, steps=80):
    """The search written out plainly, in numpy, for one parameter set."""
    best, found = np.inf, None
    low, high = min(x.min(), 0), max(x.max(), 0)
    for i in range(steps):
        a, b = np.float32(low * (1 - 0.01 * i)), np.float32(high * (1 - 0.01 * i))
        if symmetric:
            scale, zero, bottom, top = (
                max(a / -(2 ** (bits - 1)), b / (2 ** (bits - 1) - 1)),
                0,
                -(2 ** (bits - 1)),
                2 ** (bits - 1) - 1,
            )
        else:
            scale, bottom, top = (b - a) / (2**bits - 1), 0, 2**bits - 1
            zero = np.round(-a / scale)
        q = np.clip(np.round(x / scale) + zero, bottom, top)
        error = (np.abs((q - zero) * scale - x) ** norm).sum()
        if error < best:
            best, found = error, scale
    return found, best


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("norm", "steps"), [(2.4, 80), (2.0, 80), (1.0, 30), (3.5, 5)])
def test_mse_finds_what_brute_force_finds(bits, symmetric, norm, steps):
    """On a small set the range is one of the two best that a plain search finds, with its error within 0.1 %."""
    x = draw(1, 3, 400, seed=bits)
    spec = QuantSpec(bits=bits, granularity="channel", symmetric=symmetric)
    params = Mse(norm=norm, steps=steps).fit(stream(x), spec).tensors
    for k in range(3):
        values = x[0, k].double().numpy()
        scale, error = brute(values, bits, symmetric, norm, steps)
        assert params["scale"][0, k].item() == pytest.approx(scale, rel=0.02)
        ours = params["scale"][0, k].item()
        zero = params["zero"][0, k].item()
        bottom, top = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
        q = np.clip(np.round(values / ours) + zero, bottom, top)
        assert (np.abs((q - zero) * ours - values) ** norm).sum() <= error * 1.001


def test_mse_on_a_histogram_is_near_the_exact_search():
    """Streamed in parts, the range found on 4,096 bins has an error within 2 % of the exact search's."""
    x = draw(8, 1, 5000)
    spec = QuantSpec(bits=4)
    exact = Mse().fit(stream(x), spec).tensors
    binned = Mse().fit(stream(x, parts=4), spec).tensors

    def error(params):
        z, s = params["zero"][0], params["scale"][0]
        return ((((x / s).round() + z).clamp(0, 15) - z) * s - x).abs().pow(2.4).sum()

    assert error(binned) <= error(exact) * 1.02


@pytest.mark.parametrize("quantizer", EVERY, ids=lambda quantizer: quantizer.name)
@pytest.mark.parametrize("grain", ["tensor", "channel", "token", "group:4"])
@pytest.mark.parametrize("sign", ["sym", "asym"])
def test_every_width_and_granularity(quantizer, grain, sign):
    """From 2 to 8 bits, with one time group or three: codes fit their width, and each bit takes error away."""
    x = draw(6, 10, 4, 4, seed=5) + 0.2
    for groups in (1, 3):
        group = torch.arange(6) % groups
        errors = []
        for bits in range(2, 9):
            spec = parse_spec(f"int{bits} {grain} {sign} time:{groups}", symmetric=False)
            values = reference.arrange(x, reference.CHANNEL_FIRST, spec.granularity, spec.group_size)
            params = quantizer.fit(stream(values, group, parts=2), spec).tensors
            assert params["scale"].shape == (groups, values.shape[1])
            codes = quantize(x, spec, params, reference.CHANNEL_FIRST, group)
            low, high = reference.levels(bits, spec.symmetric)
            assert low <= codes.min() <= codes.max() <= high
            rounded = dequantize(codes, spec, params, reference.CHANNEL_FIRST, group)
            errors.append((rounded - x).square().mean().item())
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.02 * errors[0]


@pytest.mark.parametrize("q", [0.9, 0.99])
def test_percentile_is_numpys(q):
    """The range's ends are the order statistics that numpy's 'inverted_cdf' gives."""
    x = draw(1, 1, 999)
    params = Percentile(q=q).fit(stream(x), QuantSpec(bits=8)).tensors
    low, high = (np.quantile(x.double().numpy(), p, method="inverted_cdf") for p in (1 - q, q))
    assert params["scale"].item() == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("quantizer", [AbsMax(), Mse(), Percentile()])
def test_time_groups_are_fitted_apart(quantizer):
    """Values of two time groups, mixed in every batch, give the parameters each group gives alone."""
    x = draw(40, 2, 30)
    x[::2] *= 10
    groups = torch.arange(40) % 2
    both = quantizer.fit(stream(x, groups, parts=4), QuantSpec(bits=8, time_groups=2)).tensors["scale"]
    for g in range(2):
        alone = quantizer.fit(stream(x[groups == g], parts=4), QuantSpec(bits=8)).tensors["scale"]
        assert torch.allclose(both[g], alone[0], rtol=0.02)


def test_an_unseen_time_group_takes_all_values():
    """A group that calibration never saw gets the parameters of everything together, not NaN."""
    x = draw(10, 1, 30)
    groups = torch.zeros(10, dtype=torch.long)
    scale = AbsMax().fit(stream(x, groups), QuantSpec(bits=8, time_groups=3)).tensors["scale"]
    assert scale[1].item() == scale[2].item() == scale[0].item() > 0


@pytest.mark.parametrize("quantizer", [Mse(), Percentile(q=0.99)], ids=["mse", "percentile"])
def test_an_unseen_time_group_takes_all_values_where_groups_differ(quantizer):
    """One group spans 20 times the other: one never seen is fitted as all values would be without groups, to 2%."""
    x = draw(64, 2, 400)
    x[::2] *= 20
    groups = (torch.arange(64) % 2) * 2
    apart = quantizer.fit(stream(x, groups, parts=2), QuantSpec(bits=4, time_groups=3)).tensors
    together = quantizer.fit(stream(x, parts=2), QuantSpec(bits=4)).tensors
    assert torch.allclose(apart["scale"][1], together["scale"][0], rtol=0.02)
    assert torch.equal(apart["zero"][1], together["zero"][0])
    counts = summarise(stream(x, groups, parts=2), QuantSpec(time_groups=3)).counts.sum(2)
    assert counts.tolist() == [[12800.0] * 2, [25600.0] * 2, [12800.0] * 2]


def test_infinite_values_are_refused():
    """A range over infinities fits nothing, and says so."""
    x = torch.tensor([[[1.0, float("inf")]]])
    with pytest.raises(ValueError, match="infinities or NaN"):
        AbsMax().fit(stream(x), QuantSpec())


def test_histogram_counts_every_value():
    """However values are streamed, the counts of each set add up to how many there were."""
    summary = summarise(stream(draw(8, 3, 100), parts=4), QuantSpec(granularity="channel"))
    assert summary.counts.sum(2).tolist() == [[800.0] * 3]
