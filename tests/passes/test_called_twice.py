"""A block that a model calls twice learns its rounding where it comes first, and keeps it where it comes again."""

from __future__ import annotations

import attrs
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.fitting import fit_inputs, fit_weights
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import Objective, Reconstruction, engine
from torch import nn

from qpass.activations import Samples
from qpass.graph import trace
from qpass.slots import find


class ResBlock(nn.Module):
    """What two places of a chain may share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(torch.relu(x))


class Shared(nn.Module):
    """One block called twice, and another between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.again, self.once = ResBlock(), ResBlock()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(self.once(self.again(self.first(x)))))


@attrs.frozen(kw_only=True, eq=False)
class Rows(UniformSteps):
    """These rows."""

    name = "rows"
    x: torch.Tensor
    t: torch.Tensor

    def compute(self, graph, ctx):
        return Samples(inputs=(self.x, self.t))


@pytest.fixture
def fitted(context):
    """The model's graph with everything fitted, the rows, and a context that has them."""
    torch.manual_seed(0)
    x, t = torch.randn(64, 3, 8, 8), torch.zeros(64)
    graph = trace(Shared(), (x[:2], t[:2]))
    graph = Assign(weight="int4 channel", edge_weight="int4 channel").run(graph, context).graph
    context = attrs.evolve(context, calibration=Rows(x=x, t=t))
    fit_weights(graph, Mse(), context)
    fit_inputs(graph, Mse(), 32, context)
    return graph, Samples(inputs=(x, t)), context


@pytest.mark.parametrize("steps", [False, True])
def test_its_rounding_learns_once(fitted, steps):
    """At its second place only the step sizes of inputs are left to learn."""
    graph, samples, context = fitted
    objective = Objective(iterations=20, batch=8, steps=steps, activations=steps)
    traces = Reconstruction(graph=graph, samples=samples, objective=objective, ctx=context, key="twice").run()
    assert [one.block for one in traces if one.block.startswith("again")] == ["again", "again#2"][: 1 + steps]
    assert find(graph, "again.conv.weight_q.codes") is not None


def test_its_rounding_starts_again_once(fitted, monkeypatch):
    """Where rounding learns anew, as in `par`, what the first place has learned stays at the second."""
    graph, samples, context = fitted
    learned, real = [], engine.reconstruct

    def watched(soft, *rest):
        learned.extend((soft.block.name, one.slot.home) for one in soft.roundings())
        return real(soft, *rest)

    monkeypatch.setattr(engine, "reconstruct", watched)
    for key, restart in (("first", 0.0), ("anew", 0.15)):
        learned.clear()
        objective = Objective(iterations=20, batch=8, steps=True, activations=True, restart=restart)
        Reconstruction(graph=graph, samples=samples, objective=objective, ctx=context, key=key).run()
        assert [block for block, home in learned if home == "again.conv.weight_q"] == ["again"]
