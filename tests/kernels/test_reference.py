"""The reference arithmetic against values worked by hand, and against torch's own fake quantization."""

from __future__ import annotations

import itertools

import pytest
import torch

from qpass.kernels import reference
from qpass.quantizer import codebook, dequantize, fake_quantize, params_from_range, quantize, summarise
from qpass.spec import QuantSpec

LAYOUTS = {
    "weight": (6, 10, 3, 3),
    "channel-first": (4, 10, 5, 5),
    "channel-last": (4, 7, 10),
    "token-last": (4, 10, 7),
}


def test_codes_by_hand():
    """scale 0.5, zero 3, 4 bits: round(x / 0.5) + 3, kept within 0..15; ties go to even."""
    x = torch.tensor([-9.0, -1.5, -0.25, 0.0, 0.25, 0.75, 3.1, 100.0])
    codes = reference.encode_affine(x, torch.tensor(0.5), torch.tensor(3.0), 0, 15)
    assert codes.tolist() == [0, 0, 3, 3, 3, 5, 9, 15]


def test_tie_follows_the_value_not_the_code():
    """Rounding happens before the zero point is added: 0.5 steps round to even whatever the zero point."""
    x = torch.tensor([0.5, 1.5, 2.5])
    for zero in (0.0, 1.0):
        codes = reference.encode_affine(x, torch.tensor(1.0), torch.tensor(zero), 0, 15)
        assert (codes - zero).tolist() == [0, 2, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("granularity", "size"), [("tensor", 0), ("channel", 0), ("group", 4), ("token", 0)])
def test_spread_undoes_arrange(layout, granularity, size):
    """Each value meets the parameters of its own set: subtracting each set's own mean leaves every set with mean 0."""
    if layout == "weight" and granularity == "token":
        return
    x = torch.randn(LAYOUTS[layout], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if granularity == "group":
        x = x[:, :8] if layout != "channel-last" else x[..., :8]  # no padding, which would count in a mean
    sets = reference.arrange(x, layout, granularity, size)
    mean = reference.spread(sets.mean(2), x, layout, granularity, size)
    assert reference.arrange(x - mean, layout, granularity, size).mean(2).abs().max() < 1e-12


def test_a_short_last_group_repeats_its_own_channels():
    """Seven channels in groups of five: the second holds the last two, twice and a half; of two channels, both."""
    x = torch.arange(7.0).reshape(1, 7, 1, 1)
    groups = reference.arrange(x, "channel-first", "group", 5)[0].tolist()
    assert groups == [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 5.0, 6.0, 5.0]]
    weight = reference.arrange(x[0, 5:].reshape(1, 2), "weight", "group", 3)
    assert weight.tolist() == [[[5.0, 6.0, 5.0]]]


@pytest.mark.parametrize(("layout", "shape"), [("weight", (16, 66)), ("channel-last", (64, 5, 66))])
def test_only_its_own_values_fit_a_short_last_group(layout, shape):
    """66 channels in groups of 64: LSQ's first step of the last two is 2 mean|x| / sqrt(7) of those two."""
    from qpass_passes.quantizers.learned_step import initial

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(bits=4, granularity="group", group_size=64, symmetric=True)
    sets = reference.arrange(x, layout, "group", 64)
    params = initial(summarise(lambda: [(sets, torch.zeros(len(sets), dtype=torch.long))], spec), spec)
    mean = x[..., 64:].abs().mean(1) if layout == "weight" else x[..., 64:].abs().mean()[None]
    torch.testing.assert_close(params.tensors["scale"].reshape(-1, 2)[:, 1], 2 * mean / 7**0.5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_per_channel_equals_torch(bits):
    """With zero point 0 our order and torch's agree: equal to fake_quantize_per_channel_affine, bit for bit."""
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(1))
    spec = QuantSpec(bits=bits, granularity="channel", symmetric=True)
    values = reference.arrange(weight, "weight", "channel", 0)
    params = params_from_range(values.amin(2), values.amax(2), spec)
    low, high = reference.levels(bits, True)
    theirs = torch.fake_quantize_per_channel_affine(
        weight, params.tensors["scale"][0], torch.zeros(8, dtype=torch.int32), 0, low, high
    )
    assert torch.equal(fake_quantize(weight, spec, params.tensors, "weight"), theirs)


@pytest.mark.parametrize("fmt", ["int", "nf4", "fp8-e4m3", "fp8-e5m2", "log2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_twice_changes_nothing(fmt, symmetric):
    """What has been rounded is on the grid, so rounding it again gives the same codes and values."""
    bits = {"nf4": 4, "log2": 4}.get(fmt, 8)
    spec = QuantSpec(format=fmt, bits=bits, symmetric=symmetric)
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    params = params_from_range(x.amin().reshape(1, 1), x.amax().reshape(1, 1), spec).tensors
    codes = quantize(x, spec, params, "channel-last")
    values = dequantize(codes, spec, params, "channel-last")
    assert torch.equal(quantize(values, spec, params, "channel-last"), codes)
    assert torch.equal(fake_quantize(values, spec, params, "channel-last"), values)


@pytest.mark.parametrize(("fmt", "dtype"), [("fp8-e4m3", torch.float8_e4m3fn), ("fp8-e5m2", torch.float8_e5m2)])
def test_fp8_equals_torch_casts(fmt, dtype):
    """With the scale at the format's own greatest value, rounding is torch's cast and back (ties apart)."""
    top = torch.finfo(dtype).max
    spec = QuantSpec(format=fmt, bits=8)
    table, thresholds = codebook(spec, torch.device("cpu"))
    x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(3)) * 10
    ours = fake_quantize(
        x, spec, {"scale": torch.full((1, 1), top), "thresholds": thresholds, "table": table}, "channel-last"
    )
    theirs = x.to(dtype).float()
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)


def test_log2_by_hand():
    """3 bits unsigned: 1, 1/2, ..., 1/64 and 0; the exponent is rounded, and what is below 2^-6.5 becomes 0."""
    spec = QuantSpec(format="log2", bits=3)
    table, thresholds = codebook(spec, torch.device("cpu"))
    assert table.tolist() == [0.0, *(2.0**-k for k in range(6, -1, -1))]
    x = torch.tensor([[1.0, 0.8, 0.7, 0.36, 0.35, 2**-6.4, 2**-6.6, 0.0]])
    params = {"scale": torch.ones(1, 1), "thresholds": thresholds, "table": table}
    expected = [1.0, 1.0, 0.5, 0.5, 0.25, 2**-6, 0.0, 0.0]
    assert fake_quantize(x, spec, params, "channel-last").tolist() == [expected]


@pytest.mark.parametrize("compared", [64, 0], ids=["compared", "searched"])
@pytest.mark.parametrize("own", [False, True], ids=["one table", "a table for each group"])
def test_compiled_it_finds_the_same_levels(own, compared, monkeypatch):
    """To the last bit, on the thresholds themselves and at infinity and NaN too, whichever way it looks for them."""
    monkeypatch.setattr(reference, "COMPARED", compared)
    table, thresholds = codebook(QuantSpec(format="log2", bits=4), torch.device("cpu"))
    scale = torch.tensor([[1.0], [0.5]])
    if own:
        table, thresholds = torch.stack([table, table.sqrt()]), torch.stack([thresholds, thresholds.sqrt()])
    ends = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 2.0])
    row = torch.cat([thresholds.flatten(), thresholds.flatten() / 2, ends, torch.rand(100)])
    x, group = row.repeat(3, 1), torch.tensor([0, 1, 1])
    args = ("channel-last", "tensor", 0)
    names = []

    def backend(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    plain = lambda x, group: reference.fake_quantize_codebook(x, scale, thresholds, table, *args, group)  # noqa: E731
    found = torch.compile(plain, backend=backend, fullgraph=True)(x, group)
    assert any("bucketize" in name or "searchsorted" in name for name in names) == (not compared)
    assert torch.equal(found, plain(x, group))
    assert not torch.isnan(found).any()


def test_time_groups_pick_each_samples_parameters():
    """A batch whose samples have their own timesteps is rounded sample by sample as each group alone would be."""
    edges = torch.tensor([100.0, 500.0])
    scale = torch.tensor([[0.1], [0.5], [2.0]])
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(4))
    group = reference.time_group(torch.tensor([0, 100, 499, 999]), edges)
    assert group.tolist() == [0, 1, 1, 2]
    args = (-8, 7, "channel-first", "tensor", 0)
    together = reference.fake_quantize_affine(x, scale, torch.zeros(3, 1), *args, group)
    for sample, g in enumerate(group):
        alone = reference.fake_quantize_affine(x[sample : sample + 1], scale[g : g + 1], torch.zeros(1, 1), *args)
        assert torch.equal(together[sample : sample + 1], alone)


@pytest.mark.parametrize("granularity", ["tensor", "token", "channel"])
def test_dynamic_is_the_static_of_each_sample(granularity):
    """A dynamic scale equals the static one fitted on that sample's own range."""
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(5))
    together = reference.fake_quantize_dynamic(x, 4, False, "channel-last", granularity, 0)
    for sample in range(3):
        one = x[sample : sample + 1]
        values = reference.arrange(one, "channel-last", granularity, 0)
        scale, zero = reference.affine_from_range(values.amin(2), values.amax(2), 4, False)
        alone = reference.fake_quantize_affine(one, scale, zero, 0, 15, "channel-last", granularity, 0)
        assert torch.equal(together[sample : sample + 1], alone)


def test_degenerate_ranges_give_finite_grids():
    """A tensor that is constant, zero, or one-sided rounds to itself within half a step, with no NaN."""
    for low, high in itertools.product((0.0, -1e-38, -3.0), (0.0, 1e-38, 5.0)):
        for symmetric in (True, False):
            scale, zero = reference.affine_from_range(torch.tensor(low), torch.tensor(high), 8, symmetric)
            assert torch.isfinite(scale)
            assert torch.isfinite(zero)
            x = torch.tensor([low, high, 0.0])
            bottom, top = reference.levels(8, symmetric)
            rounded = (reference.encode_affine(x, scale, zero, bottom, top) - zero) * scale
            assert (rounded - x).abs().max() <= scale / 2 * 1.001


def test_mixed_bits_round_each_channel_to_its_own():
    """A weight of 2-, 4- and 8-bit channels has at most 4, 16 and 256 levels in them."""
    spec = QuantSpec(bits=(2, 4, 8), granularity="channel", symmetric=True)
    weight = torch.randn(3, 4000, generator=torch.Generator().manual_seed(6))
    values = reference.arrange(weight, "weight", "channel", 0)
    params = params_from_range(values.amin(2), values.amax(2), spec)
    codes = quantize(weight, spec, params.tensors, "weight")
    assert [len(row.unique()) <= 2**bits for row, bits in zip(codes, spec.bits, strict=True)] == [True] * 3
    assert len(codes[2].unique()) > 16
