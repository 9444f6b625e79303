"""The cost of a pass that learns grows with the blocks and with the rows, and not with their squares."""

from __future__ import annotations

import attrs
import pytest
import torch
from qpass_passes.adaround import AdaRound
from qpass_passes.assign import Assign
from qpass_passes.brecq import Brecq
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.qdrop import QDrop
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qpass.activations import Samples
from qpass.graph import trace
from qpass.manager import PassManager

FEW = {"iterations": 4, "batch": 8, "fit_rows": 64}


class ResBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Chain(nn.Module):
    """Blocks of one shape, with a skip connection from the first to the last."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock() for _ in range(count))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in self.blocks[1:]:
            x = block(x)
        return x + first


@attrs.frozen(kw_only=True)
class Noise(UniformSteps):
    """Rows of noise."""

    name = "noise"

    def compute(self, graph, ctx):
        return Samples(inputs=(torch.randn(self.samples, 4, 8), torch.zeros(self.samples)))


class Work(TorchDispatchMode):
    """Counts the values that torch computes, forwards and backwards, and the calls it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.values = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        self.values += sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


def work(context, step, blocks, rows):
    torch.manual_seed(0)
    graph = trace(Chain(blocks), (torch.randn(2, 4, 8), torch.zeros(2)))
    context = attrs.evolve(context, reference=graph, calibration=Noise(samples=rows))
    with Work() as counted:
        run = PassManager([Assign(weight="int4 channel"), step]).run(graph, context)
    assert len(run.records[1].notes["blocks"]) >= blocks
    return counted


@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("step", [AdaRound(**FEW), Brecq(**FEW), QDrop(**FEW)], ids=lambda step: step.name)
def test_cost_is_linear(context, step, budget):
    """Four times the blocks, or the rows, at equal iterations for each block, are at most 4.4 times the work."""
    context = attrs.evolve(context, memory_budget=budget)
    base = work(context, step, 4, 256)
    blocks, rows = work(context, step, 16, 256), work(context, step, 4, 1024)
    assert 3 < blocks.values / base.values <= 4.4
    assert 3 < blocks.calls / base.calls <= 4.4
    assert 1 < rows.values / base.values <= 4.4
    assert 1 < rows.calls / base.calls <= 4.4
