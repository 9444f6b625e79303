"""Bits where they count: errors held to graphs that round one tensor alone, the budget to the count of its cost."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from qpass_passes.allocate import Allocate, Bill, give
from qpass_passes.alone import errors_alone
from qpass_passes.assign import Assign
from qpass_passes.fitting import fit_inputs, fit_weights
from qpass_passes.quantizers.mse import Mse
from qpass_passes.simulate import Simulate

from qpass.graph import trace
from qpass.manager import PassManager
from qpass.products import count
from qpass.slots import slots, spec_of


def bops(graph, context):
    return sum(part.bops for parts in count(graph, context.model.example(1)).values() for part in parts)


def assigned(context, **options):
    given = {"weight": "int4 channel", "input": "int4 tensor", **options}
    return Assign(**given).run(copy.deepcopy(context.reference), context).graph


def bits(graph):
    return {slot.home: slot.spec.bits for slot in slots(graph)}


def test_errors_are_those_of_one_quantizer_alone(context):
    """Against the realised graph of `simulate`, in which nothing but that layer's weight, or input, has a spec."""
    graph = assigned(context, attention="float")
    samples = context.get(context.calibration, context.reference)
    found = errors_alone(graph, samples, context, weight=Mse(), input=Mse(), fit_rows=256)
    assert not any(name.endswith("scale") for name, _ in graph.named_buffers()), "the graph itself is not fitted"
    with torch.no_grad():
        exact = context.reference(*samples.inputs)
    checked = 0
    for slot in list(slots(graph))[::5]:
        homes = next(homes for homes in found if slot.home in homes)
        lone = copy.deepcopy(graph)
        for node in lone.graph.nodes:
            if (spec := spec_of(node)) is not None:
                weight = spec.weight if slot.index < 0 and node.name == slot.node.name else None
                mine = {one.node.name for one in slots(graph) if one.home in homes and one.index >= 0}
                inputs = tuple(one if node.name in mine else None for one in spec.inputs)
                node.meta["qpass"] = attrs.evolve(spec, weight=weight, inputs=inputs)
        fit_weights(lone, Mse(), context)
        fit_inputs(lone, Mse(), 256, context)
        rounded = PassManager([Simulate()]).run(lone, context).graph
        with torch.no_grad():
            apart = (rounded(*samples.inputs) - exact).double().square().sum() / exact.double().square().sum()
        assert found[homes] == pytest.approx(float(apart), rel=1e-3)
        checked += 1
    assert checked > 5


def test_the_bill_is_the_cost_evaluators(context):
    """At the bits of `assign`, and at any others: equal to counting a graph that has them."""
    graph = assigned(context)
    bill = Bill(graph, context.model.example(1))
    assert bill.total() == bops(graph, context)
    chosen = [slot for place, slot in enumerate(slots(graph)) if place % 3 == 0]
    wider = copy.deepcopy(graph)
    for slot in chosen:
        node = next(n for n in wider.graph.nodes if n.name == slot.node.name)
        spec = node.meta["qpass"]
        if slot.index < 0:
            node.meta["qpass"] = attrs.evolve(spec, weight=attrs.evolve(spec.weight, bits=7))
        else:
            inputs = [attrs.evolve(one, bits=7) if i == slot.index else one for i, one in enumerate(spec.inputs)]
            node.meta["qpass"] = attrs.evolve(spec, inputs=tuple(inputs))
    told = bill.total({slot.home: 7 for slot in chosen})
    assert told == bops(wider, context)
    assert told > bill.total()


def test_it_spends_at_most_the_budget_and_lowers_the_error(context):
    """Half as many bit operations more, nothing lowered, and a realised model nearer to full precision."""
    narrow, samples = assigned(context), context.get(context.calibration, context.reference)
    run = PassManager([Allocate(budget=0.5)]).run(copy.deepcopy(narrow), context)
    notes = run.records[-1].notes
    before, after = bits(narrow), bits(run.graph)
    raised = {home for homes in notes["raised"] for home in homes.split(" = ")}
    assert raised
    drawn = dict(notes["share of all errors, each quantizer alone"]["of"])
    assert {home for homes, _ in drawn["raised"] for home in homes.split(" = ")} <= raised
    assert 0 < sum(share for some in drawn.values() for _, share in some) <= 1 + 1e-9
    assert {home for home in before if after[home] != before[home]} == raised
    assert all(after[home] == 8 for home in raised)
    spent = bops(run.graph, context) / bops(narrow, context)
    assert 1 < spent <= 1.5
    assert notes["bit operations"]["after"] == round(bops(run.graph, context))
    with torch.no_grad():
        exact = context.reference(*samples.inputs)
        errors = [
            float((PassManager([Simulate()]).run(copy.deepcopy(g), context).graph(*samples.inputs) - exact).norm())
            for g in (narrow, run.graph)
        ]
    assert errors[1] < errors[0]


def test_no_room_changes_nothing(context):
    """A budget that not one quantizer fits in."""
    graph = assigned(context)
    run = PassManager([Allocate(budget=1e-9)]).run(copy.deepcopy(graph), context)
    assert not run.records[-1].changed
    assert bits(run.graph) == bits(graph)


def test_where_nothing_can_be_raised_nothing_is_tried(context):
    """At 8 bits throughout, and where all have what it raises to: no trial, and the report says why."""
    for options, most in (({"weight": "int8 channel", "input": "int8 tensor"}, 8), ({"input": "int6 tensor"}, 4)):
        graph = assigned(context, **options)
        before = bits(graph)
        run = PassManager([Allocate(bits=most)]).run(graph, context)
        (record,) = run.records
        assert not record.changed
        assert record.notes == {
            "nothing to raise": f"no quantizer is evenly spaced, not fitted yet and below {most} bits"
        }
        assert bits(run.graph) == before


def test_what_is_fitted_or_not_even_stays(context):
    """A fitted weight keeps the bits it was fitted at, and powers of two keep theirs."""
    graph = assigned(context, softmax="log2:4 tensor")
    first = next(slot for slot in slots(graph) if slot.index < 0 and slot.spec.bits == 4)
    fit_weights(graph, Mse(), context)
    before = bits(graph)
    after = bits(PassManager([Allocate(budget=9.0)]).run(graph, context).graph)
    assert after[first.home] == 4
    powers = [slot.home for slot in slots(graph) if slot.spec.format == "log2"]
    assert powers
    assert all(after[home] == before[home] for home in powers)
    assert any(after[home] > before[home] for home in before)


class Twice(torch.nn.Module):
    """One layer called in two places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.last = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, t):
        return self.last(self.layer(self.layer(self.first(x)).relu()))


def test_a_shared_weight_is_raised_at_every_call(context):
    """The weight that two calls share has one width, and both calls are on the bill."""
    inputs = (torch.randn(16, 8), torch.zeros(16, dtype=torch.long))
    graph = trace(Twice().eval(), inputs)
    edges = {"edge_weight": "int3 channel", "edge_input": "int8 tensor"}
    graph = Assign(weight="int3 channel", input="int8 tensor", **edges).run(graph, context).graph
    bill = Bill(graph, inputs)
    shared = next(slot for slot in slots(graph) if slot.home == "layer.weight_q")
    assert bill.total({shared.home: 8}) - bill.total() == 2 * 16 * 8 * 8 * 8 * (8 - 3)
    give(graph, shared, 8)
    assert [node.meta["qpass"].weight.bits for node in graph.graph.nodes if node.target == "layer"] == [8, 8]
    assert bill.total({shared.home: 8}) == Bill(graph, inputs).total()
