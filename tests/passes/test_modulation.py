"""Factors go into the linear that modulates a tensor, where its rows are read for that alone."""

from __future__ import annotations

import copy

import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.equivalence.rescale import rescale
from qpass_passes.equivalence.ties import ties
from torch import nn
from torch.nn import functional as F

from qpass.activations import run_recording
from qpass.graph import trace
from qpass.kernels import reference
from qpass.quantizer import QParams
from qpass.slots import find, slots, write_params

C = 6
FACTOR = torch.tensor([0.01, 0.3, 1.0, 7.0, 50.0, 100.0])
TAKEN = (
    "chunk", "slices", "unbind", "the other way round", "two sizes", "through shapes", "through two shapes",
    "own constant",
)  # fmt: skip
LEFT = (
    "scale read again", "a part read again", "output read again", "half of the batch read again",
    "halves of the batch read again", "sum read again", "product read again", "tensor read again",
    "constant read again", "whole numbers",
    "shift is scale", "squared", "called twice", "shared weight", "weight read", "one on all", "no one",
    "another linear", "tokens", "table",
)  # fmt: skip


class Modulated(nn.Module):
    """`layer(norm(x) * (1 + scale) + shift) * gate`, in the words of many a model."""

    def __init__(self, kind: str, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.norm = kind, nn.LayerNorm(C, elementwise_affine=False)
        self.rows, self.other = nn.Linear(3, 3 * C, bias=bias), nn.Linear(3, 3 * C, bias=bias)
        self.layer, self.last = nn.Linear(C, 5), nn.Linear(5, C)
        self.register_buffer("one", torch.ones(C, dtype=torch.long if kind == "whole numbers" else None))
        self.table = nn.Parameter(torch.randn(C))
        if kind == "shared weight":
            self.other.weight = self.rows.weight

    def cut(self, rows):
        """Shift, scale and gate."""
        if self.kind == "slices":
            return rows[:, :C], rows[:, C : 2 * C], rows[:, 2 * C :]
        if self.kind == "unbind":
            return rows.unflatten(-1, (3, C)).unbind(1)
        if self.kind == "two sizes":
            both, gate = rows.split([2 * C, C], -1)
            return *both.chunk(2, dim=1), gate
        return (1 + rows if self.kind == "one on all" else rows).chunk(3, dim=1)

    def forward(self, x, t):
        made = self.rows(F.silu(t))
        shift, scale, gate = self.cut(made)
        own = self.kind in ("own constant", "constant read again", "whole numbers")
        wide = scale[:, None] if "one" in self.kind.split()[:2] else (self.one if own else 1) + scale[:, None]
        modulated = wide if self.kind == "squared" else self.norm(x)
        if self.kind == "tokens":  # C of them: each has a scale
            wide, shift = 1 + scale[:, :, None], shift[:, :, None]
        else:
            other = {"another linear": lambda: self.other(t).chunk(3, dim=1)[0], "shift is scale": lambda: scale}
            shift = other.get(self.kind, lambda: shift)().unsqueeze(1)
        if self.kind == "table":  # the same at every timestep
            wide = 1 + self.table.unsqueeze(0)
        product = modulated * wide
        y = shift + (1 + scale).unsqueeze(1) * modulated if self.kind == "the other way round" else product + shift
        again = {
            "scale read again": lambda: scale,
            "a part read again": lambda: made[:, C + 2 : C + 4],
            "half of the batch read again": lambda: made[2:],
            "halves of the batch read again": lambda: made.chunk(2)[1],
            "output read again": lambda: torch.tanh(made),
            "sum read again": lambda: wide,
            "product read again": lambda: product,
            "tensor read again": lambda: y,
            "constant read again": lambda: torch.tanh(self.one),
            "called twice": lambda: self.rows(t),
            "shared weight": lambda: self.other(t),
            "weight read": lambda: self.rows.weight,
        }
        if self.kind == "through shapes":
            return self.last(torch.relu(self.layer(y.flatten(0, 1)))).unflatten(0, (-1, C)) * gate[:, None]
        if self.kind == "through two shapes":
            return self.layer(y.unflatten(1, (2, 3)))
        z = self.last(torch.relu(self.layer(y))) * gate[:, None]
        return z + again[self.kind]().mean() if self.kind in again else z


def made(kind, **options):
    """That module's graph with specs on every layer, inputs, and what `layer` reads."""
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, C, C, generator=source), torch.randn(4, 3, generator=source)
    graph = trace(Modulated(kind, **options).eval(), inputs)
    Assign(edge_weight="int4 channel", edge_input="int8 tensor").run(graph, None)
    return graph, inputs, next(tie for tie in ties(graph) if tie.layers == ("layer",))


def apart(found, expected):
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("offset", [None, torch.linspace(-2, 2, C)], ids=["", "offset"])
@pytest.mark.parametrize("kind", TAKEN)
def test_the_tensor_is_divided_by_the_factor(kind, offset, bias):
    """What `layer` reads is x / r + b, what comes out is what did, and the gate's rows keep every bit."""
    graph, inputs, tie = made(kind, bias=bias)
    before, rows = run_recording(graph, tie.tensors, inputs), copy.deepcopy(graph.get_submodule("rows"))
    expected = graph(*inputs)
    assert rescale(graph, tie, FACTOR, offset) == "modulation"
    graph.graph.lint()
    assert apart(graph(*inputs), expected) < (2e-6 if offset is None else 2e-5)  # weights times b take digits
    after = run_recording(graph, tie.tensors, inputs)[tie.tensors[0]]
    wanted = before[tie.tensors[0]] / FACTOR + (0 if offset is None else offset)
    assert torch.allclose(after, wanted, rtol=1e-5, atol=1e-6 / float(FACTOR.min()))
    assert not [node for node in graph.graph.nodes if node.target is reference.rescale]
    now = graph.get_submodule("rows")
    assert torch.equal(now.weight, rows.weight / torch.cat([FACTOR, FACTOR, torch.ones(C)]).unsqueeze(1))
    if bias:
        assert torch.equal(now.bias[C:], rows.bias[C:] / torch.cat([FACTOR, torch.ones(C)]))
    assert torch.equal(find(graph, "one" if kind == "own constant" else "layer.modulation.inverse"), 1 / FACTOR)


@torch.no_grad()
@pytest.mark.parametrize("kind", LEFT)
def test_rows_with_another_reader_stay(kind):
    """Then the quantizer takes the factor, the linear keeps every bit, and the model is still what it was."""
    graph, inputs, tie = made(kind)
    rows, expected = copy.deepcopy(graph.get_submodule("rows")), graph(*inputs)
    assert rescale(graph, tie, FACTOR) == "quantizer"
    assert apart(graph(*inputs), expected) < 2e-6
    now = graph.get_submodule("rows")
    assert torch.equal(now.weight, rows.weight)
    assert torch.equal(now.bias, rows.bias)
    assert sum(node.target is reference.rescale for node in graph.graph.nodes) == 1


@torch.no_grad()
@pytest.mark.parametrize(("fitted", "where"), [("weight_q", "quantizer"), ("input0_q", "modulation")])
def test_a_fitted_weight_is_not_changed(fitted, where):
    """A fit of the linear's weight would not hold; one of its input is untouched by what happens to its rows."""
    graph, inputs, tie = made("chunk")
    slot = next(slot for slot in slots(graph) if slot.home == f"rows.{fitted}")
    one = torch.ones(1, 3 * C if fitted == "weight_q" else 1)
    write_params(graph, slot, QParams(kind="affine", tensors={"scale": one, "zero": torch.zeros_like(one)}))
    weight, expected = graph.get_submodule("rows").weight.clone(), graph(*inputs)
    assert rescale(graph, tie, FACTOR) == where
    assert torch.equal(graph.get_submodule("rows").weight, weight) == (where == "quantizer")
    assert apart(graph(*inputs), expected) < 2e-6


@torch.no_grad()
def test_two_factors_are_one():
    """After r and r' the buffer holds 1 / (r r'), and there is one."""
    graph, inputs, tie = made("chunk")
    expected = graph(*inputs)
    for factor in (torch.full((C,), 4.0), torch.full((C,), 0.5)):
        assert rescale(graph, tie, factor) == "modulation"
    assert find(graph, "layer.modulation.inverse").tolist() == [0.5] * C
    assert find(graph, "layer.modulation1.inverse") is None
    assert torch.equal(graph(*inputs), expected)


class Twice(nn.Module):
    """One layer reads two tensors, each with a modulation of its own, or one of them with none."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.second, self.layer = second, nn.Linear(C, 5)
        self.rows, self.other = nn.Linear(3, 2 * C), nn.Linear(3, 2 * C)

    def forward(self, x, t):
        (shift, scale), (more, wide) = self.rows(t).chunk(2, dim=1), self.other(t).chunk(2, dim=1)
        y = x * (1 + scale[:, None]) + shift[:, None]
        z = x * (1 + wide[:, None]) + more[:, None] if self.second else torch.tanh(x) * wide.mean()
        return self.layer(y) - self.layer(z)


@torch.no_grad()
@pytest.mark.parametrize("second", [True, False])
def test_a_layer_that_reads_two_tensors(second):
    """Both modulations take the factor, each with a buffer of its own, or neither does."""
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, C, C, generator=source), torch.randn(4, 3, generator=source)
    graph = trace(Twice(second).eval(), inputs)
    Assign(edge_weight="int4 channel", edge_input="int8 tensor").run(graph, None)
    tie, expected = next(tie for tie in ties(graph) if tie.layers == ("layer",)), graph(*inputs)
    assert rescale(graph, tie, FACTOR) == ("modulation" if second else "quantizer")
    assert apart(graph(*inputs), expected) < 2e-6
    for name in ("modulation", "modulation1"):
        assert (find(graph, f"layer.{name}.inverse") is not None) == second
