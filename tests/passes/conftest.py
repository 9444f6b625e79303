"""A lone layer whose inputs have a few channels a hundred times larger than the rest."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import ClassVar, Literal

import attrs
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.simulate import Simulate
from torch import nn

from qpass.activations import Samples
from qpass.analysis import Analyses, Analysis
from qpass.graph import trace
from qpass.manager import PassManager

sys.path.insert(0, str(Path(__file__).parent))  # for `learned`

LARGE = torch.ones(16).index_fill(0, torch.tensor([3, 9]), 100.0)  # the size of each channel


@attrs.frozen(kw_only=True)
class Given(Analysis[Samples]):
    """Sixteen rows at each of four timesteps, which grow with the timestep."""

    name: ClassVar[str] = "given"
    of: ClassVar[Literal["reference", "graph"]] = "reference"
    kind: str

    def compute(self, graph, ctx):
        shape = (64, 16) if self.kind == "linear" else (64, 16, 5, 5)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).movedim(1, -1) * LARGE
        t = torch.arange(64) % 4
        return Samples(inputs=(x.movedim(-1, 1) * (1 + t).reshape(-1, *[1] * (len(shape) - 1)), t))


class Lone(nn.Module):
    """A layer whose weights are smaller where its inputs are larger, by the root."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 32) if kind == "linear" else nn.Conv2d(16, 32, 3, padding=1)
        self.layer.weight.data /= LARGE.sqrt().reshape(1, -1, *[1] * (self.layer.weight.dim() - 2))

    def forward(self, x, t):
        return self.layer(x)


@pytest.fixture
def planted(context):
    """`planted(kind, "weight/input", *passes)`: the mean squared error of the layer's output, rounded that way."""

    def error(kind, bits, *passes):
        given = Given(kind=kind)
        samples = given.compute(None, None)
        graph = trace(Lone(kind).eval(), samples.inputs)
        ctx = attrs.evolve(context, reference=graph, calibration=given, analyses=Analyses())
        weight, _, inputs = bits.partition("/")
        steps = [Assign(edge_weight=weight, edge_input=inputs), *passes, Simulate()]
        done = PassManager(steps).run(copy.deepcopy(graph), ctx).graph
        with torch.no_grad():
            return float((done(*samples.inputs) - graph(*samples.inputs)).square().mean())

    return error
