"""Timesteps that begin with unlike errors, made to count alike in a block's loss."""

from __future__ import annotations

import math

import pytest
import torch
from learned import FEW, run
from qpass_passes.assign import Assign
from qpass_passes.fitting import fit_weights
from qpass_passes.qdrop import QDrop
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import Objective, Reconstruction
from qpass_passes.reconstruction.balance import balancing
from qpass_passes.reconstruction.chain import Shape
from qpass_passes.row_places import Places
from torch import nn

from qpass.activations import Samples
from qpass.graph import trace
from qpass.slots import slots, weight_of


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_weights_by_hand(power):
    """error^-power, times what keeps the mean of weight x error; 1 where nobody saw a timestep, and never infinite."""
    error = [0.5, 8.0, 3.0]
    plain = [one**-power for one in error]
    scale = sum(error) / sum(w * e for w, e in zip(plain, error, strict=True))
    found = balancing(torch.tensor([*error, math.nan]), power)
    assert found.tolist() == pytest.approx([*(w * scale for w in plain), 1.0])
    assert balancing(torch.tensor([0.0, 1.0]), power).isfinite().all()
    assert balancing(torch.tensor([0.0, 0.0]), power).tolist() == [1.0, 1.0]


class Loud(nn.Module):
    """A linear layer whose output is ten times as large at timestep 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 24, bias=False)
        self.a = nn.Linear(24, 16, bias=False)
        self.last = nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(self.a(self.first(x)) * (1 + 9 * (t == 0))[:, None])


def errors(context, balance):
    """The relative squared error of the layer at both timesteps, whose inputs span unlike planes; and what it tells."""
    torch.manual_seed(0)
    model = Loud()
    loud, quiet = (torch.randn(128, 6) @ torch.randn(6, 24) for _ in range(2))
    x, t = torch.cat([loud, quiet]) / 10, torch.arange(2).repeat_interleave(128).float()
    graph = trace(model, (x[:2], t[:2]))
    graph = Assign(weight="int3 channel", input="float", keep=("first", "last")).run(graph, context).graph
    fit_weights(graph, Mse(), context)
    objective = Objective(iterations=800, rate=1e-2, batch=32, balance=balance, held_out=False)
    parts = Reconstruction(
        graph=graph, samples=Samples(inputs=(x, t)), objective=objective, ctx=context, key=f"loud {balance}"
    )
    (told,) = [one for one in parts.run() if one.iterations]
    (slot,) = slots(graph)
    weight = weight_of(graph, slot).detach()
    scale = graph.get_buffer("a.weight_q.scale").reshape(-1, 1)
    codes = graph.get_buffer("a.weight_q.codes").float()
    seen = model.first(x).detach()
    off, whole = (seen @ (weight - codes * scale).T).square().sum(1), (seen @ weight.T).square().sum(1)
    return [float(off[t == step].sum() / whole[t == step].sum()) for step in (0, 1)], told


def test_the_quiet_timestep_is_learned_too(context):
    """With balance its error is much less than without, at the cost of the loud one's."""
    (loud, quiet), plain = errors(context, 0.0)
    (loud_too, quiet_too), balanced = errors(context, 1.0)
    assert quiet_too < 0.8 * quiet
    assert loud_too > loud
    assert balanced.before == pytest.approx(plain.before, rel=1e-3), "what all begin with stays as it is"
    assert balanced.after < balanced.before


@pytest.mark.parametrize(
    "places", [Places(), Places(inner=4), Places(outer=2), Places(axis=1), Places(axis=1, outer=3, inner=2)]
)
def test_a_number_for_each_row_wherever_rows_stand(places):
    """Beside a tensor with its rows in any axis, each row's values are multiplied by its own number."""
    like = torch.randn(1, *[3] * places.axis, *([places.outer, places.inner] if places.several else []), 5)
    shape = Shape(like=like, places=places, largest=1.0)
    rows, numbers = torch.randn(7, *like.shape[1:]), torch.rand(7)
    given = shape.as_given(rows) * shape.each(numbers)
    expected = rows * numbers.reshape(-1, *[1] * (rows.dim() - 1))
    assert torch.equal(shape.by_row(given), expected)


def test_a_pass_that_balances(context):
    """As an option of a pass: other codes, of the same shapes, all finite."""
    plain, balanced = (run(context, QDrop(**FEW, balance=balance)) for balance in (0.0, 1.0))
    both = [dict(graph.named_buffers()) for graph in (plain, balanced)]
    assert both[0].keys() == both[1].keys()
    assert any(not torch.equal(both[0][name], both[1][name]) for name in both[0])
    assert all(value.isfinite().all() for value in both[1].values())
