"""Where passes put tensors on a GPU, shown without one: torch's fake tensors refuse two devices in one operation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from qpass_passes.equivalence import trial
from qpass_passes.gptq import Gptq
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction.soft import SoftLayer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qpass.quantizer import QParams
from qpass.slots import Slot
from qpass.spec import QuantSpec


@pytest.fixture(autouse=True)
def fake():
    """Every tensor of the test has a shape and a device, and no values."""
    with FakeTensorMode():
        yield


@pytest.mark.parametrize("order", ["as-is", "diagonal"])
def test_gptq(order):
    """Columns are put in order and back where the weight is."""
    one = SimpleNamespace(
        original=torch.randn(5, 24, device="cuda"), scale=torch.ones(5, 1, device="cuda"),
        zero=torch.zeros(5, 1, device="cuda"), low=-8, high=7,
        codes=torch.zeros(5, 24, dtype=torch.int8, device="cuda"),
    )  # fmt: skip
    h = torch.eye(24, dtype=torch.float64, device="cuda")
    assert Gptq(order=order)._rounded(one, h).device.type == "cuda"


@pytest.mark.parametrize("groups", [1, 2])
def test_the_rounding_that_tcr_tries(groups, monkeypatch):
    """Timesteps and edges, which are the recipe's and so on the CPU, meet inputs on the GPU."""

    def fit(quantizer, slot, batches):
        ((values, group),) = batches()  # what a quantizer does with them hangs on values, which there are none of
        assert values.device == group.device
        ones = torch.ones(slot.spec.time_groups, values.shape[1], device="cuda")
        return QParams(kind="affine", tensors={"scale": ones, "zero": ones})

    monkeypatch.setattr(trial, "fit", fit)
    per_channel = QuantSpec(bits=4, granularity="channel", symmetric=True)
    kernel = Slot(node=None, index=-1, spec=per_channel, layout="weight", home="l.weight_q")
    per_time = QuantSpec(bits=4, time_groups=groups)
    given = Slot(node=None, index=0, spec=per_time, layout="channel-last", home="l.input0_q")
    edges = torch.tensor([3.0]) if groups == 2 else None
    read = []
    monkeypatch.setattr(trial, "float", read.append, raising=False)  # a fake error has no value to read
    tries = trial.Trial(weight=Mse(), input=Mse(), rows=64)
    linear, x = nn.Linear(24, 5, device="cuda"), torch.randn(6, 24, device="cuda")
    tries._error(linear, x, torch.arange(6), given, kernel, torch.ones(24), edges)
    assert [error.device.type for error in read] == ["cuda"]


def test_bits_for_each_channel():
    """The ends of codes are where the codes are."""
    spec = QuantSpec(bits=(4, 8, 4), granularity="channel", symmetric=True)
    slot = Slot(node=None, index=-1, spec=spec, layout="weight", home="l.weight_q")
    tensors = {"scale": torch.ones(1, 3, device="cuda"), "zero": torch.zeros(1, 3, device="cuda")}
    inner = nn.Linear(8, 3, device="cuda")
    soft = SoftLayer(slot, inner, QParams(kind="affine", tensors=tensors), None, True, 0.0)
    assert soft.low.device.type == soft.high.device.type == "cuda"
