"""Layers with nothing to round, or nothing to learn from, pass through every pass that looks at data."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from qpass_passes.adaround import AdaRound
from qpass_passes.assign import Assign
from qpass_passes.bias_correction import BiasCorrection
from qpass_passes.brecq import Brecq
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.gptq import Gptq
from qpass_passes.learn_steps import LearnSteps
from qpass_passes.qdrop import QDrop
from qpass_passes.simulate import Simulate
from torch import nn

from qpass.activations import Samples
from qpass.graph import trace
from qpass.manager import PassManager

FEW = {"iterations": 25, "batch": 8}


class Odd(nn.Module):
    """Every kind of layer that is seldom seen, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.dead = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.starved = nn.Conv2d(4, 4, 1)  # reads what the dead layer gives
        self.constant = nn.Conv2d(4, 4, 1)
        self.time = nn.Linear(1, 4)  # reads t, an integer
        self.narrow = nn.Conv2d(4, 1, 1)
        self.twice = nn.Conv2d(1, 1, 3, padding=1)
        self.tiny = nn.Conv2d(1, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.dead.weight.zero_()
            self.constant.weight.fill_(0.25)
            self.twice.weight.mul_(1e-6)  # so that step sizes after it are below any learning rate

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = self.constant(h + self.starved(self.dead(h)))
        h = h + self.time(t[:, None].to(x.dtype))[:, :, None, None]
        h = self.twice(torch.relu(self.twice(self.narrow(h))))
        return self.last(self.tiny(h))


@attrs.frozen(kw_only=True)
class Given(UniformSteps):
    """Calibration rows whose timesteps are whole numbers."""

    name = "given"

    def compute(self, graph, ctx):
        source = torch.Generator().manual_seed(0)
        return Samples(
            inputs=(torch.randn(32, 3, 6, 6, generator=source), torch.randint(0, 1000, (32,), generator=source))
        )


NOTES = {
    "dead": "all its weights are 0",
    "starved": "its input never changes",
    "constant": "all its weights are equal",
    "time": "one channel wide; fed with integers",
    "narrow": "one channel wide",
    "twice": "one channel wide; called 2 times: rounded once, for the first",
    "tiny": "one channel wide",
}


@pytest.mark.parametrize("inputs", ["int8 tensor", "int6 channel", "int8 token dynamic", "log2:4 tensor sym"])
@pytest.mark.parametrize(
    "step",
    [
        AdaRound(**FEW), Brecq(**FEW), QDrop(**FEW), QDrop(**FEW, polish=50), LearnSteps(**FEW), Gptq(),
        Gptq(order="as-is"), BiasCorrection(),
    ],
    ids=lambda step: step.name,
)  # fmt: skip
def test_no_layer_is_too_odd(context, step, inputs):
    """The passes end, everything stays finite, the dead layer stays dead, and the report has a note on each."""
    torch.manual_seed(0)
    model = Odd()
    x, t = torch.randn(2, 3, 6, 6), torch.tensor([3, 900])
    graph = trace(model, (x, t))
    context = attrs.evolve(context, reference=graph, calibration=Given())
    assign = Assign(weight="int4 channel", input=inputs, edge_weight="int4 channel", edge_input=inputs)
    run = PassManager([assign, step, Simulate()]).run(copy.deepcopy(graph), context)
    with torch.no_grad():
        output = run.graph(x, t)
    assert output.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in run.graph.state_dict().values())
    assert not run.graph.get_submodule("dead").weight.any()
    assert run.records[1].notes["peculiar"] == NOTES
