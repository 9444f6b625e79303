"""Tensors with several places of the first axis for each image, as windows, frames and heads have them."""

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
from qpass_passes.fitting import fit_weights
from qpass_passes.gptq import Gptq
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction.chain import chain, cut_into
from qpass_passes.reconstruction.rows import Pool
from qpass_passes.reconstruction.streams import Streams
from qpass_passes.row_places import Places
from qpass_passes.simulate import Simulate
from qpass_passes.tcr import Tcr
from qpass_passes.tfmq import Tfmq
from torch import nn

from qpass.activations import Samples
from qpass.errors import PreconditionError
from qpass.graph import block_module, trace
from qpass.manager import PassManager
from qpass.slots import slots

ROWS = 64
FEW = {"iterations": 300, "batch": 16, "rate": 1e-2}


class Windows(nn.Module):
    """B x 16 x 8 tokens, as (4 B) x 4 x 8 between two of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x) * (1 + t.reshape(-1, 1, 1) / 100)
        h = self.b(torch.relu(self.a(h.reshape(-1, 4, 8))))
        return self.last(h.reshape(-1, 16, 8))


@attrs.frozen(kw_only=True, eq=False)
class Noise(UniformSteps):
    """Rows of noise at growing timesteps."""

    name = "noise"

    def compute(self, graph, ctx):
        source = torch.Generator().manual_seed(0)
        return Samples(inputs=(torch.randn(ROWS, 16, 8, generator=source), torch.arange(ROWS) * 10.0))


@pytest.fixture
def windows(context):
    """The context of that model."""
    torch.manual_seed(0)
    graph = trace(Windows().eval(), (torch.randn(2, 16, 8), torch.zeros(2)))
    return attrs.evolve(context, reference=graph, calibration=Noise())


@pytest.mark.parametrize("budget", [10**9, 0], ids=["memory", "files"])
def test_the_chain_keeps_every_row(windows, budget, tmp_path):
    """Rolled forward layer by layer, the full-precision model gives what it gives in one go, for any rows."""
    graph = Assign(weight="int4 channel", input="float").run(copy.deepcopy(windows.reference), windows).graph
    fit_weights(graph, Mse(), windows)
    samples = windows.get(windows.calibration, graph)
    cut = chain(graph, cut_into(graph, "layer"), samples, windows.device, budget=1 << 32)
    assert Places(inner=4) in [shape.places for shape in cut.shapes.values()]
    streams = Streams(graph, cut, samples, Pool(budget, tmp_path), windows.device)
    for block in cut.blocks:
        streams.advance_full(block, block_module(graph, block))
    index = torch.tensor([3, 60, 1, 31, 32])
    found = streams.read_full(graph.graph.output_node().args[0], index)
    with torch.no_grad():
        expected = windows.reference(*samples.take(index).inputs)
    assert torch.allclose(found, expected, atol=1e-5 if budget else 2e-2)


@pytest.mark.parametrize(
    "step",
    [AdaRound(**FEW), Brecq(**FEW), Gptq(), BiasCorrection()],
    ids=lambda one: one.name,
)
def test_passes_that_roll_forward_help(windows, step):
    """Each lowers the error of the model's output."""
    samples, errors = windows.get(windows.calibration, windows.reference), []
    for passes in ((), (step,)):
        assign = Assign(weight="int3 channel", input="int8 tensor", edge_weight="int3 channel")
        run = PassManager([assign, *passes, Simulate()]).run(copy.deepcopy(windows.reference), windows)
        with torch.no_grad():
            errors.append(float((run.graph(*samples.inputs) - windows.reference(*samples.inputs)).norm()))
    assert errors[1] < 0.97 * errors[0]


def test_time_groups_are_refused(windows):
    """They count images, and here several rows of the tensor are one image's."""
    graph = Assign(weight="int8 channel", input="int8 tensor time:4").run(windows.reference, windows).graph
    for step in (Simulate(), Tcr()):
        with pytest.raises(PreconditionError, match=r"'a\.input0_q' .* 4 places .* without 'time:4'"):
            step.run(copy.deepcopy(graph), windows)


def test_a_scale_for_each_timestep_where_rows_are_images(windows):
    """`tfmq` leaves one scale to the layers that read windows, and says so; the graph is carried out."""
    graph = Assign(weight="int8 channel", input="int8 tensor", edge_input="int8 tensor").run(
        copy.deepcopy(windows.reference), windows
    )
    steps = [Tfmq(iterations=2, batch=4, rows=8), Simulate()]
    run = PassManager(steps).run(graph.graph, windows)
    notes = run.records[0].notes
    assert notes["one scale, as a row of theirs is no image"] == ["a.input0_q", "b.input0_q"]
    assert notes["inputs with a scale per timestep"] == 2
    groups = {slot.home: slot.spec.time_groups for slot in slots(run.graph) if slot.index == 0}
    assert groups == {"first.input0_q": ROWS, "a.input0_q": 1, "b.input0_q": 1, "last.input0_q": ROWS}
    samples = windows.get(windows.calibration, run.graph)
    with torch.no_grad():
        found, expected = run.graph(*samples.inputs), windows.reference(*samples.inputs)
    assert (found - expected).norm() < 0.05 * expected.norm()
