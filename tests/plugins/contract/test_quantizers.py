"""What every quantizer keeps to."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from installed import every, made
from torch import Tensor

from qpass.kernels import reference
from qpass.quantizer import dequantize, fake_quantize, quantize
from qpass.spec import LOGS, parse_spec

WEIGHT_SPECS = [
    f"{number} {grain}{sign}"
    for number in ("int2", "int4", "int8", "nf4", "log2", "log:8", "fp8-e4m3", "fp8-e5m2")
    for grain in ("tensor", "channel", "group:4")
    for sign in (" sym", " asym")
]
INPUT_SPECS = [
    f"{number} {grain}{time}"
    for number in (
        "int4 tensor",
        "int8 channel",
        "int8 token",
        "int8 group:4",
        "nf4 tensor",
        "log2 token",
        "log-sqrt2 tensor",
    )
    for grain in ("",)
    for time in ("", " time:3")
]


@every("quantizers")
class TestQuantizers:
    """On seeded random values, whatever the granularity, the format and the time groups."""

    @pytest.mark.parametrize("text", WEIGHT_SPECS)
    def test_weights(self, cls: Any, text: str) -> None:
        """One set of parameters for the tensor, each channel or each group, of a weight with a short last group."""
        spec = parse_spec(text, symmetric=True)
        weight = held(torch.randn(6, 10, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1, spec)
        values = reference.arrange(weight, reference.WEIGHT, spec.granularity, spec.group_size)
        params = made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)
        sets = {"tensor": 1, "channel": 6, "group": 18}[spec.granularity]
        well_formed(params, spec, 1, sets)
        codes = quantize(weight, spec, params.tensors, reference.WEIGHT)
        close(dequantize(codes, spec, params.tensors, reference.WEIGHT), weight, spec)

    @pytest.mark.parametrize("text", INPUT_SPECS)
    @pytest.mark.parametrize("batches", [1, 3])
    def test_inputs(self, cls: Any, text: str, batches: int) -> None:
        """One row for each time group, from values that come in several batches and again when asked."""
        spec = parse_spec(text, symmetric=False)
        generator = torch.Generator().manual_seed(0)
        x = held(torch.randn(6, 10, 3, 3, generator=generator) + 0.5, spec)
        group = torch.arange(6) % spec.time_groups
        values = reference.arrange(x, reference.CHANNEL_FIRST, spec.granularity, spec.group_size)
        streamed = list(zip(values.chunk(batches), group.chunk(batches), strict=True))
        params = made(cls).fit(lambda: iter(streamed), spec)
        sets = {"tensor": 1, "channel": 10, "token": 9, "group": 3}[spec.granularity]
        well_formed(params, spec, spec.time_groups, sets)
        close(fake_quantize(x, spec, params.tensors, reference.CHANNEL_FIRST, group), x, spec)

    def test_a_group_that_saw_nothing(self, cls: Any) -> None:
        """It takes the parameters of all groups together, so they are finite and not 0."""
        spec = parse_spec("int8 channel time:3", symmetric=False)
        values = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
        params = made(cls).fit(lambda: [(values, torch.tensor([0, 2, 0, 2]))], spec)
        well_formed(params, spec, 3, 5)

    @pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-38, 1e30])
    @pytest.mark.parametrize("text", ["int8 channel sym", "int4 channel asym", "nf4 channel", "log2 channel"])
    def test_values_that_are_all_alike(self, cls: Any, text: str, value: float) -> None:
        """Whatever the value, what comes out is finite."""
        spec = parse_spec(text, symmetric=True)
        values = torch.full((1, 2, 9), value)
        params = made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)
        well_formed(params, spec, 1, 2)
        assert torch.isfinite(fake_quantize(values[0], spec, params.tensors, reference.WEIGHT)).all()

    def test_bits_of_each_channel(self, cls: Any) -> None:
        """A weight may have other bits in every output channel; more of them leave less error."""
        spec = attrs.evolve(parse_spec("int8 channel sym", symmetric=True), bits=(2, 4, 8))
        weight = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
        values = reference.arrange(weight, reference.WEIGHT, "channel", 0)
        params = made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)
        well_formed(params, spec, 1, 3)
        rounded = dequantize(
            quantize(weight, spec, params.tensors, reference.WEIGHT), spec, params.tensors, reference.WEIGHT
        )
        errors = (rounded - weight).square().mean(1)
        assert errors[0] > errors[1] > errors[2]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_values_that_no_range_fits(self, cls: Any, bad: float) -> None:
        """A ValueError, which `simulate` turns into a sentence with the layer's name."""
        values = torch.ones(1, 2, 9)
        values[0, 1, 3] = bad
        spec = parse_spec("int8 channel", symmetric=True)
        with pytest.raises(ValueError):
            made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)

    def test_no_values(self, cls: Any) -> None:
        """So is nothing at all."""
        with pytest.raises(ValueError):
            made(cls).fit(list, parse_spec("int8 tensor", symmetric=True))


def held(values: Tensor, spec: Any) -> Tensor:
    """Values that the format can hold: logarithms without a sign have no level below 0."""
    return values.abs() if spec.format in LOGS and not spec.symmetric else values


def well_formed(params: Any, spec: Any, groups: int, sets: int) -> None:
    """Parameters have the shapes that the contract promises, and are usable."""
    assert params.kind == spec.kind
    tensors = dict(params.tensors)
    assert tensors["scale"].shape == (groups, sets)
    assert (tensors["scale"] > 0).all()
    if spec.kind == "affine":
        assert set(tensors) == {"scale", "zero"}
        assert tensors["zero"].shape == (groups, sets)
        assert torch.equal(tensors["zero"], tensors["zero"].round())
    else:
        assert set(tensors) == {"scale", "thresholds", "table"}
        (levels,) = tensors["table"].shape
        assert levels <= 256
        assert tensors["thresholds"].shape == (levels - 1,)
        assert (tensors["table"].diff() > 0).all()
        assert (
            (tensors["table"][:-1] < tensors["thresholds"]) & (tensors["thresholds"] < tensors["table"][1:])
        ).all()
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in tensors.values())


def close(rounded: Tensor, x: Tensor, spec: Any) -> None:
    """What is rounded is finite, and loses less than it keeps where its format holds numbers of both signs."""
    assert torch.isfinite(rounded).all()
    if spec.format in LOGS and not spec.symmetric:
        return  # magnitudes only: made for softmax outputs
    assert (rounded - x).square().mean() < x.square().mean()
