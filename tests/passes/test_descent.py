"""Coordinate descent on codes: its quadratic is the loss, its moves lower it, and it keeps off what is not its own."""

from __future__ import annotations

import pytest
import torch
from learned import FEW, bytes_of, prepared, run
from qpass_passes.assign import Assign
from qpass_passes.brecq import Brecq
from qpass_passes.fitting import fit_weights
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import descent
from qpass_passes.reconstruction.chain import cut_into
from qpass_passes.reconstruction.descent import View, descend, polish, quadratic, room
from qpass_passes.reconstruction.soft import SoftBlock
from torch import nn
from torch.func import functional_call

from qpass.graph import block_module, trace
from qpass.manager import PassManager

TIMES = torch.arange(48) // 16  # rows come ordered by timestep


class ResBlock(nn.Module):
    """A branch whose output a gate scales, by channel and timestep, and a shortcut."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.gate = nn.Embedding(3, 8)
        self.images = kind == "conv"
        if self.images:
            self.first, self.shortcut = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 8, 1, stride=2)
            self.second = nn.Conv2d(6, 8, 3, stride=2, padding=(1, 2), dilation=(1, 2))
        else:
            self.first, self.second, self.shortcut = nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x, t):
        gate = self.gate(t)
        gate = gate[:, :, None, None] if self.images else gate[:, None]
        return self.shortcut(x) * 0.5 + gate * self.second(torch.relu(self.first(x)))


class Model(nn.Module):
    """One block and nothing else."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x, t):
        return self.block(x, t)


@pytest.fixture
def rounded(context):
    """`rounded(block, x, weight)`: the block rounded to nearest, and what polishing sees of it."""

    def made(block, x, weight="int3 channel", counts=1.0):
        graph = trace(Model(block), (x[:3], TIMES[:3]))
        assign = Assign(weight=weight, input="float", edge_weight=weight, edge_input="float")
        graph = assign.run(graph, context).graph
        fit_weights(graph, Mse(), context)
        graph.requires_grad_(False)
        (cut,) = cut_into(graph, "block")
        given = [{"x": x, "t": TIMES}[node.name] for node in cut.inputs]
        with torch.no_grad():
            wanted = block_module(graph, cut)(*given)[0]
        soft = SoftBlock(graph, cut, weights=True, steps=False).eval()
        soft.set(soft=False, activations=False, drop=0.0)
        view = View(
            run=lambda index: list(soft(TIMES[index], *(one[index] for one in given))),
            apart=lambda index, ours: [(ours[0] - wanted[index], counts)],
            rows=torch.arange(len(x)), batch=7, group=TIMES, draws=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return soft, view

    torch.manual_seed(0)
    return made


def rows(kind):
    torch.manual_seed(1)
    return torch.randn(48, 6, 6, 5) if kind == "conv" else torch.randn(48, 9, 6) @ torch.randn(6, 6)


def error(view):
    with torch.no_grad():
        ((apart, counts),) = view.apart(view.rows, view.run(view.rows))
        return float((apart.double().square() * counts).sum()) / 2


def layer_of(soft, name):
    return soft.layers[f"block.{name}.weight_q"]


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["second", "shortcut"])
def test_the_quadratic_is_the_loss(kind, name, rounded):
    """Its derivatives are those that autograd finds of the plain formula, by the weights of each output channel."""
    x, block = rows(kind), ResBlock(kind)
    counts = torch.rand(1, 8, 1, 1) if kind == "conv" else torch.rand(8)
    soft, view = rounded(block, x, counts=counts)
    names = {home.split(".")[1]: one.fixed for home, one in soft.layers.items()}
    with torch.no_grad():
        wanted = block(x, TIMES)

    def loss(weight):
        held = {f"{other}.weight": value for other, value in names.items()} | {f"{name}.weight": weight}
        return ((functional_call(block, held, (x, TIMES)) - wanted).square() * counts).sum() / 2

    found = quadratic(layer_of(soft, name), view)
    first = torch.func.grad(loss)(names[name]).flatten(1)
    torch.testing.assert_close(found.gradient, first.detach(), rtol=1e-3, atol=1e-3)
    second = torch.func.hessian(loss)(names[name]).detach().reshape(first.shape * 2)
    ours = torch.einsum("cg,gvw->cvw", found.weight, found.second)
    for channel in range(8):
        torch.testing.assert_close(ours[channel], second[channel, :, channel], rtol=1e-2, atol=1e-2)
        second[channel, :, channel] = 0
    assert second.abs().max() < 1e-4  # no channel has a part in another's


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("weight", ["int3 channel", "int3 group:3", "int2 tensor asym"])
def test_no_single_move_is_left_that_helps(kind, weight, rounded):
    """Brute force: every code one up and one down, the whole block run each time."""
    soft, view = rounded(ResBlock(kind), rows(kind), weight)
    layer = layer_of(soft, "second")
    before = error(view)
    assert polish(layer, view, 1000)
    after = error(view)
    assert after < 0.9 * before
    codes = layer.codes.clone()
    tried = 0
    for place in range(codes.numel()):
        for by in (-1, 1):
            moved = codes.flatten().clone()
            moved[place] += by
            if layer.low <= moved[place] <= layer.high:
                layer.give_back(moved.reshape(codes.shape))
                assert error(view) > after * (1 - 1e-5)
                tried += 1
    assert tried > codes.numel()
    assert layer.low <= codes.min()
    assert codes.max() <= layer.high


def test_each_move_is_the_best(rounded):
    """One move in each channel: brute force finds none that lowers the channel's error more."""
    soft, view = rounded(ResBlock("linear"), rows("linear"))
    layer = layer_of(soft, "second")
    start, before = layer.codes.clone(), error(view)
    polish(layer, view, 1)
    taken = (layer.codes - start).abs().sum(1)
    assert taken.max() == 1
    for channel in taken.nonzero()[:, 0].tolist():
        gains = []
        for place in range(6):
            for by in (-1, 1):
                codes = start.clone()
                codes[channel, place] += by
                if layer.low <= codes[channel, place] <= layer.high:
                    layer.give_back(codes)
                    gains.append((before - error(view), place, by))
        _, place, by = max(gains)
        layer.give_back(start)
        polish(layer, view, 1)
        assert layer.codes[channel, place] == start[channel, place] + by


class Twice(ResBlock):
    """A layer that the block calls two times."""

    def forward(self, x, t):
        return self.second(x) + self.second(torch.relu(self.first(x)))


class Normed(ResBlock):
    """A layer whose channels a norm brings together."""

    def forward(self, x, t):
        y = self.second(torch.relu(self.first(x)))
        return self.shortcut(x) + y - y.mean(-1, keepdim=True)


Twice.__name__ = Normed.__name__ = "ResBlock"  # blocks are known by the names of their classes


@pytest.mark.parametrize(
    ("kind", "of", "handed_on"),
    [
        ("linear", ResBlock, {"second", "shortcut"}),
        ("conv", ResBlock, {"second", "shortcut"}),
        ("linear", Twice, set()),
        ("linear", Normed, {"shortcut"}),
    ],
)
def test_it_takes_layers_that_are_handed_on(kind, of, handed_on, rounded):
    soft, view = rounded(of(kind), rows(kind))
    codes = {home: one.codes.clone() for home, one in soft.layers.items()}
    taken = {home.split(".")[1] for home, one in soft.layers.items() if polish(one, view, 100)}
    assert taken == handed_on
    moved = {home.split(".")[1] for home, one in soft.layers.items() if not torch.equal(one.codes, codes[home])}
    assert moved <= handed_on


def test_timesteps_share_groups_where_memory_is_short(rounded, monkeypatch):
    """With room for one matrix of second derivatives, gates are averaged; the error still falls."""
    monkeypatch.setattr(descent, "MEMORY", 4 * 6 * 6)
    soft, view = rounded(ResBlock("linear"), rows("linear"))
    before, layer = error(view), layer_of(soft, "second")
    assert room([layer], 3) == 4 * 6 * 6 + descent.CHUNK
    assert quadratic(layer, view).second.shape == (1, 6, 6)
    polish(layer, view, 4)
    assert error(view) < before
    monkeypatch.setattr(descent, "MEMORY", 4 * 6 * 6 - 1)
    assert room([layer], 3) == 0
    assert not polish(layer, view, 4)


def test_it_stops_where_nothing_is_to_gain(rounded):
    """A second descent from where the first ended moves nothing."""
    soft, view = rounded(ResBlock("linear"), rows("linear"))
    layer = layer_of(soft, "second")
    polish(layer, view, 1000)
    assert torch.equal(descend(layer, quadratic(layer, view), 1000), layer.codes)


def test_a_pass_polishes(context):
    """On a real UNet: blocks end lower than without, by the rows held out, and say so."""
    plain = PassManager((Brecq(**FEW),)).run(prepared(context), context)
    polished = PassManager((Brecq(**FEW, polish=50),)).run(prepared(context), context)
    theirs, ours = (found.records[0].notes["blocks"] for found in (plain, polished))
    assert sum(block["loss"][1] for block in ours.values()) < sum(block["loss"][1] for block in theirs.values())
    lower = [name for name, block in ours.items() if "unpolished" in block]
    assert len(lower) > len(ours) / 2
    assert all(ours[name]["loss"][1] < ours[name]["unpolished"] for name in lower)
    again = run(context, Brecq(**FEW, polish=50))
    assert bytes_of(again) == bytes_of(polished.graph)
