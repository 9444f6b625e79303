"""Passes that only look at data call the model with as few rows at a time as the memory budget asks for."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from qpass_passes.alone import errors_alone
from qpass_passes.assign import Assign
from qpass_passes.equivalence.channels import ChannelRanges
from qpass_passes.output_correction import OutputCorrection
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import Simulate

from qpass import activations
from qpass.activations import LIVE, widest_row
from qpass.analysis import Analyses
from qpass.manager import PassManager


def ranges(graph, context):
    found = ChannelRanges(calibration=context.calibration, rows=32).compute(graph, context)
    return torch.cat([torch.cat([found.low[name], found.typical[name]], 1) for name in found.low], 1)


def alone(graph, context):
    rows = context.get(context.calibration, graph)
    found = errors_alone(graph, rows, context, weight=AbsMax(), input=AbsMax(), fit_rows=8)
    return torch.tensor(list(found.values()))


def correction(graph, context):
    graph = PassManager([Simulate(weight=AbsMax(), input=AbsMax())]).run(graph, context).graph
    done = OutputCorrection().run(graph, context).graph
    return torch.cat([done.output_correction.gain.flatten(), done.output_correction.shift.flatten()])


@pytest.mark.parametrize(
    ("look", "tolerance"),
    [(ranges, 1e-5), (alone, 1e-5), (correction, 2e-3)],  # a code that flips with the last bit is seen in the last
    ids=["ranges", "alone", "correction"],
)
def test_rows_at_a_time(context, look, tolerance, monkeypatch):
    """With room for three rows it takes three at most, and finds what it finds with all of them at once."""
    monkeypatch.setattr(activations, "LEAST", 1)
    graph = Assign(weight="int4 channel", input="int8 tensor").run(copy.deepcopy(context.reference), context).graph
    rows = context.get(context.calibration, graph)
    three = 4 * 3 * LIVE * (widest_row(context.reference, rows, context.device) + 1)
    taken, found = [], []
    for budget in (context.memory_budget, three):
        seen: list[int] = []
        mine = copy.deepcopy(graph)
        mine.get_submodule("conv_in").register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(len(given[0]))
        )
        ctx = attrs.evolve(context, memory_budget=budget, analyses=Analyses())
        ctx.get(ctx.calibration, context.reference)
        found.append(look(mine, ctx))
        taken.append(max(seen))
    assert taken[0] == len(rows) > 3 >= taken[1]
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=tolerance)
