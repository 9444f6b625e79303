"""GPTQ's codes are those of its definition, carried out without its shortcuts."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from learned import prepared
from qpass_passes import gptq
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.gptq import Gptq, patches, round_columns
from qpass_passes.reconstruction.soft import SoftLayer
from qpass_passes.simulate import Simulate
from torch import nn

from qpass.activations import Samples
from qpass.graph import trace
from qpass.manager import PassManager
from qpass.slots import find, read_params, slots, weight_of


def by_definition(weight, scale, low, high, h):
    """One column after the other; the optimal change of all that are left, from the inverse of their own H."""
    weight, codes = weight.double().clone(), torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        inverse = torch.linalg.inv(h[i:, i:])
        codes[:, i] = (weight[:, i] / scale[:, i]).round().clamp(low, high)
        error = weight[:, i] - codes[:, i] * scale[:, i]
        weight[:, i:] -= error.unsqueeze(1) * inverse[0] / inverse[0, 0]
    return codes


def damped(*inputs):
    """2 X X^T with the paper's damping."""
    h = sum(2 * x.T.double() @ x.double() for x in inputs)
    h.diagonal().add_(0.01 * h.diagonal().mean())
    return h


@attrs.frozen(kw_only=True, eq=False)
class Rows(UniformSteps):
    """These rows, all of one timestep."""

    name = "rows"
    x: torch.Tensor

    def compute(self, graph, ctx):
        return Samples(inputs=(self.x, torch.zeros(len(self.x))))


@pytest.mark.parametrize("width", [1, 7, 128])
def test_columns(width, monkeypatch):
    """However many columns are finished together, the codes are the definition's, and better than the nearest."""
    monkeypatch.setattr(gptq, "WIDTH", width)
    source = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=source) @ torch.randn(4, 24, generator=source)
    x += 0.1 * torch.randn(500, 24, generator=source)
    weight = torch.randn(5, 24, generator=source)
    scale = (weight.abs().amax(1, keepdim=True) / 3).expand(5, 24)
    h = damped(x)
    full = torch.full((5, 24), 1.0)
    found = round_columns(weight, scale, 0 * full, -4 * full, 3 * full, h)
    assert torch.equal(found.float(), by_definition(weight, scale, -4, 3, h))
    nearest = (weight / scale).round().clamp(-4, 3)
    errors = [float(((weight - codes.float() * scale) @ x.T).norm()) for codes in (found, nearest)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1, stride=2),
        nn.Conv2d(4, 2, 1),
        nn.Conv2d(3, 5, (2, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(3, 5, 3, padding="valid"),
        nn.Conv2d(3, 5, 3, padding=(1, 2), padding_mode="circular"),
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
        nn.Linear(6, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("chunk", [1 << 20, 8 * 54 * 9, 1])
def test_patches(layer, chunk, monkeypatch):
    """A layer is the product of its patches and its flattened weight, in however small pieces these come."""
    monkeypatch.setattr(gptq, "CHUNK", chunk)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 7) if layer.weight.shape[1] == 3 else torch.randn(2, 4, 5, 5)
    if isinstance(layer, nn.Linear):
        x = torch.randn(2, 9, 6)
    with torch.no_grad():
        pieces = list(patches(layer, x))
        expected, found = layer(x), torch.cat(pieces) @ layer.weight.flatten(1).T + layer.bias
    line = 1 if isinstance(layer, nn.Linear) else expected.shape[-1]  # the least that is taken at a time
    assert max(map(len, pieces)) <= max(line, chunk // (8 * pieces[0].shape[1]))
    rows = (
        expected.reshape(-1, 3)
        if isinstance(layer, nn.Linear)
        else expected.flatten(2).transpose(1, 2).flatten(0, 1)
    )
    assert torch.allclose(found, rows, atol=1e-5)


@pytest.mark.parametrize("weight", ["int4 channel", "int3 group:8 asym"])
@pytest.mark.parametrize("order", ["diagonal", "as-is"])
def test_it_helps(context, weight, order):
    """On the calibration rows the model's output is nearer to the original's than with weights rounded to nearest."""
    samples = context.get(context.calibration, context.reference)
    errors = []
    for passes in ((), (Gptq(order=order, activations=False),)):
        graph = copy.deepcopy(context.reference)
        steps = [Assign(weight=weight, input="float", edge_input="float", attention="float"), *passes, Simulate()]
        graph = PassManager(steps).run(graph, context).graph
        with torch.no_grad():
            errors.append(float((graph(*samples.inputs) - context.reference(*samples.inputs)).norm()))
    assert errors[1] < 0.8 * errors[0]


def test_a_layer_that_is_called_twice_is_rounded_for_both_inputs(context):
    """Its codes are the definition's, with H summed over both calls; either call's alone gives others."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(12, 5)

        def forward(self, x, t):
            return self.shared(x) + self.shared(x.flip(-1).square())

    torch.manual_seed(0)
    x = torch.randn(64, 4) @ torch.randn(4, 12) + 0.1 * torch.randn(64, 12)
    graph = trace(Twice(), (x[:2], torch.zeros(2)))
    ctx = attrs.evolve(context, reference=graph, calibration=Rows(x=x))
    graph = Assign(edge_weight="int3 channel").run(copy.deepcopy(graph), ctx).graph
    graph = Gptq(order="as-is", activations=False).run(graph, ctx).graph
    codes = find(graph, "shared.weight_q.codes").float()
    scale = find(graph, "shared.weight_q.scale").reshape(5, 1).expand(5, 12)
    weight, both = graph.get_submodule("shared").weight.detach(), (x, x.flip(-1).square())
    wanted = [by_definition(weight, scale, -4, 3, damped(*inputs)) for inputs in (both, both[:1], both[1:])]
    assert torch.equal(codes, wanted[0].float())
    assert not any(torch.equal(codes, other.float()) for other in wanted[1:])


def test_layers_of_another_kind_are_left_to_rounding_to_nearest(context):
    """A convolution in one dimension and a grouped one are named in the notes, and have no codes of their own."""

    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.grouped = nn.Conv1d(64, 64, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, groups=3)
            self.plain = nn.Conv2d(3, 3, 1)

        def forward(self, x, t):
            x = self.plain(self.grouped(x))
            return self.line(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)

    graph = trace(Others(), (torch.randn(2, 3, 8, 8), torch.zeros(2)))
    graph = Assign(weight="int4 channel", edge_weight="int4 channel").run(graph, context).graph
    result = Gptq().run(graph, context)
    assert result.notes["left to rounding to nearest"] == ["grouped", "line"]
    assert find(graph, "plain.weight_q.codes") is not None
    assert find(graph, "line.weight_q.codes") is None


def test_its_codes_are_where_rounding_learns_again(context):
    """Codes that are neither the floor nor the ceiling of the weight, as some of GPTQ's are, are not thrown away."""
    graph = PassManager([Gptq(activations=False)]).run(prepared(context, weight="int3 channel"), context).graph
    far = 0.0
    for slot in [slot for slot in slots(graph) if slot.index < 0]:
        codes, params = find(graph, f"{slot.home}.codes"), read_params(graph, slot)
        soft = SoftLayer(slot, graph.get_submodule(str(slot.node.target)), params, codes, True, 0.15)
        far = max(far, float((codes - weight_of(graph, slot) / soft.scale).abs().max()))
        soft.settle()
        assert torch.equal(soft.codes, codes)
    assert far > 1
