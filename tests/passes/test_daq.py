"""Levels for softmax outputs: chosen by error or likelihood, for each time group, and carried out as chosen."""

from __future__ import annotations

import copy
from typing import ClassVar

import attrs
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.chosen_levels import levels
from qpass_passes.daq import Daq
from qpass_passes.qdrop import QDrop
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.quantizers.log2 import log_params
from qpass_passes.simulate import Simulate

from qpass.activations import run_recording
from qpass.artifact.folder import Artifact, load_artifact, save
from qpass.errors import PreconditionError
from qpass.kernels import reference
from qpass.manager import PassManager
from qpass.quantizer import QParams, Quantizer, fake_quantize, params_from_range
from qpass.slots import find, read_params, slots
from qpass.spec import QuantSpec, parse_spec


def chosen(context, softmax, sharpen=1.0, **options):
    """The graph and notes after assign and daq; attention is sharper where queries are larger."""
    graph = copy.deepcopy(context.reference)
    for name, module in graph.named_modules():
        if name.endswith("to_q"):
            module.weight.data *= sharpen
    steps = [Assign(weight="int8 channel", input="int8 tensor", softmax=softmax), Daq(**options)]
    run = PassManager(steps).run(graph, context)
    return run.graph, run.records[-1].notes


def products(graph):
    """The slots of softmax outputs, by the name of their product."""
    return {
        str(s.node.meta["origin"]): s
        for s in slots(graph)
        if "/pv[" in str(s.node.meta["origin"]) and s.index == 0
    }


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_never_worse_than_either(context, bits):
    """In every cell, by brute force: the error of softmax V is at most 1 % above the better of both candidates."""
    graph, notes = chosen(context, f"int{bits} tensor time:4", sharpen=3.0)
    compared = 0
    samples = context.get(context.calibration, context.reference)
    assert notes["softmax outputs"] == len(products(graph)) > 0
    for slot in products(graph).values():
        seen = run_recording(graph, [slot.source, slot.node.args[1]], samples.inputs)
        p, value = seen[slot.source], seen[slot.node.args[1]]
        params = read_params(graph, slot)
        for g, t in enumerate(sorted(set(samples.t.tolist()))):
            mine = samples.t == t
            exact = p[mine] @ value[mine]

            def error(rounded, exact=exact, value=value[mine]):
                return float((rounded @ value - exact).double().square().sum())

            full = p[mine].amax().reshape(1, 1)
            plain = QuantSpec(bits=bits)
            rivals = [
                (plain, params_from_range(torch.zeros(1, 1), full, plain)),
                (QuantSpec(format="log2", bits=bits), log_params(full, QuantSpec(format="log2", bits=bits), 1.0)),
            ]
            best = min(error(fake_quantize(p[mine], spec, found.tensors, slot.layout)) for spec, found in rivals)
            group = torch.full((int(mine.sum()),), g)
            ours = error(fake_quantize(p[mine], slot.spec, params.tensors, slot.layout, group))
            assert ours <= 1.01 * best
            compared += 1
    assert compared == 4 * len(products(graph))


def test_planted_distributions_are_told_apart(context):
    """Rows that all spread out are evenly spaced; where one row is peaked, the others need levels far below it."""
    source = torch.Generator().manual_seed(0)
    scores = 0.3 * torch.randn(8, 2, 64, 64, generator=source)
    value = torch.randn(8, 2, 64, 8, generator=source)
    slot = attrs.evolve(next(iter(products(chosen(context, "int4 tensor")[0]).values())), spec=QuantSpec(bits=4))
    flat = torch.softmax(scores, -1)
    scores[:, :, 5, 7] += 20
    peaked = torch.softmax(scores, -1)
    found = [Daq()._choice(slot, p, value) for p in (flat, peaked)]
    assert [choice.letter("error") for choice in found] == ["u", "l"]
    assert found[1].errors["l"] < found[1].errors["u"] / 3


def test_the_likelihood_decides_where_asked(context):
    """Values with a power-law tail and such with an exponential one, whatever the errors say."""
    source = torch.Generator().manual_seed(0)
    slot = attrs.evolve(next(iter(products(chosen(context, "int4 tensor")[0]).values())), spec=QuantSpec(bits=4))
    u = torch.rand(8, 2, 32, 32, generator=source)
    value = torch.randn(8, 2, 32, 8, generator=source)
    tails = {"l": (1 - u) ** (-1 / 1.5) / 32, "u": 1 / 32 - (1 - u).log() / 32}
    for letter, p in tails.items():
        found = Daq()._choice(slot, p, value)
        assert found.letter("likelihood") == letter
        assert abs(found.verdict.normalised) > 3


@attrs.frozen(kw_only=True)
class Lloyd(Quantizer):
    """Of `levels`, the means of what lies nearest to each; else the full range."""

    name: ClassVar[str] = "lloyd"

    def fit(self, batches, spec):
        if spec.format != "levels":
            return AbsMax().fit(batches, spec)
        values = torch.cat([x.flatten() for x, _ in batches()])
        table = values.quantile((torch.arange(2**spec.widest) + 0.5) / 2**spec.widest)
        for _ in range(30):
            nearest = torch.bucketize(values, (table[1:] + table[:-1]) / 2)
            table = torch.stack([values[nearest == code].mean() for code in range(len(table))])
        scale = table.abs().max().reshape(1, 1)
        table = table / scale[0, 0]
        return QParams(
            kind="codebook", tensors={"scale": scale, "table": table, "thresholds": (table[1:] + table[:-1]) / 2}
        )


def test_other_quantizers_take_part(context, tmp_path):
    """One with levels of its own wins where values lie on them, and an artifact keeps those."""
    source = torch.Generator().manual_seed(0)
    slot = attrs.evolve(next(iter(products(chosen(context, "int4 tensor")[0]).values())), spec=QuantSpec(bits=2))
    value = torch.randn(8, 2, 4, 8, generator=source)
    shares = torch.tensor([0.06, 0.11, 0.31, 0.52])
    planted = torch.stack([shares[torch.randperm(4, generator=source)] for _ in range(64)]).reshape(8, 2, 4, 4)
    found = Daq(others=(Lloyd(),))._choice(slot, planted, value)
    assert found.letter("error") == "o"
    assert found.errors["o"] < 1e-9 < found.errors["u"] / 10
    assert Daq(others=(AbsMax(),))._choice(slot, planted, value).letter("error") in "ul"

    graph, notes = chosen(context, "int3 tensor time:2", others=(Lloyd(),))
    letters = "".join(one["error"] for one in notes["by"].values())
    assert "o" in letters
    assert set(letters) <= set("ulo")
    realised = PassManager([Simulate()]).run(graph, context).graph
    save(Artifact(graph=realised), tmp_path / "a", context.catalog)
    loaded, inputs = load_artifact(tmp_path / "a", context.catalog).graph, context.model.example(4)
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), realised(*inputs))


def test_the_likelihood_knows_no_others():
    with pytest.raises(ValueError, match=r'others: the likelihood tells powers .* criterion = "error"'):
        Daq(criterion="likelihood", others=(AbsMax(),))


def test_what_was_chosen_is_carried_out(context, tmp_path):
    """After `simulate` each product reads levels * scale of its own time group; an artifact keeps them."""
    graph, notes = chosen(context, "int3 tensor time:2", sharpen=3.0, criterion="likelihood", bases=(1, 2))
    assert notes["logarithmic"] > 0
    homes = {
        slot.home: read_params(graph, slot) for slot in products(graph).values() if slot.spec.format == "levels"
    }
    realised = PassManager([Simulate()]).run(graph, context).graph
    inputs = context.model.example(4)
    nodes = [node for node in realised.graph.nodes if str(node.meta.get("origin")) in homes]
    assert len(nodes) == len(homes) > 0
    seen = run_recording(realised, [*nodes, *(node.args[0] for node in nodes)], inputs)
    for node in nodes:
        tensors = homes[str(node.meta["origin"])].tensors
        given, got = seen[node.args[0]], seen[node]
        group = reference.time_group(inputs[1], tensors["edges"])
        for row in range(4):
            grid = tensors["table"][group[row]] * tensors["scale"][group[row], 0]
            nearest = (given[row].unsqueeze(-1) - grid).abs().amin(-1)
            taken = (got[row].unsqueeze(-1) - grid).abs().amin(-1)
            assert taken.max() < 1e-7  # on the grid
            linear = bool(torch.allclose(grid.diff(), grid.diff()[:1], rtol=1e-4))
            assert not linear or torch.allclose((given[row] - got[row]).abs(), nearest, atol=1e-6)
    save(Artifact(graph=realised), tmp_path / "a", context.catalog)
    loaded = load_artifact(tmp_path / "a", context.catalog).graph
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), realised(*inputs))


def test_levels_of_their_own_for_each_sample():
    """A table with rows is, sample by sample, the table of that row."""
    source = torch.Generator().manual_seed(1)
    table = torch.rand(3, 8, generator=source).sort(1).values
    thresholds, scale = (table[:, 1:] + table[:, :-1]) / 2, torch.tensor([[1.0], [0.5], [2.0]])
    x, group = torch.rand(6, 4, 5, generator=source), torch.tensor([0, 2, 1, 1, 0, 2])
    args = ("channel-last", "tensor", 0)
    together = reference.fake_quantize_codebook(x, scale, thresholds, table, *args, group)
    for row, g in enumerate(group):
        alone = reference.fake_quantize_codebook(
            x[row : row + 1], scale[g : g + 1], thresholds[g], table[g], *args
        )
        assert torch.equal(together[row : row + 1], alone)
    spec = parse_spec("levels:3 tensor time:3", symmetric=False)
    tensors = {"scale": scale, "thresholds": thresholds, "table": table}
    assert torch.equal(fake_quantize(x, spec, tensors, "channel-last", group), together)


def test_evenly_spaced_levels_are_the_affine_quantizers():
    """As a table: the same values but for ties."""
    spec = QuantSpec(bits=4)
    params = params_from_range(torch.tensor([[0.0]]), torch.tensor([[0.8]]), spec)
    scale, table, thresholds = levels(params, spec, 16)
    x = torch.rand(1, 1000, generator=torch.Generator().manual_seed(2))
    ours = reference.fake_quantize_codebook(x, scale.reshape(1, 1), thresholds, table, "channel-last", "tensor", 0)
    assert torch.allclose(ours, fake_quantize(x, spec, params.tensors, "channel-last"), atol=1e-6)


def test_ties_are_for_even_spacing_and_its_scale_is_kept(context):
    """At eight bits with one base of hardly any use specs stay as `assign` left them; `simulate`, which would fit
    scales of least error, rounds with the full range, the only one that was tried."""
    graph, notes = chosen(context, "int8 tensor", bases=(1,), uniform=AbsMax())
    assert notes["logarithmic"] == 0
    found = products(graph).values()
    assert all(slot.spec.format == "int" for slot in found)
    samples = context.get(context.calibration, context.reference)
    seen = run_recording(graph, [slot.source for slot in found], samples.inputs)
    full = {slot.home: float(seen[slot.source].max()) / 255 for slot in found}
    graph = PassManager([Simulate()]).run(graph, context).graph
    assert {home: float(find(graph, f"{home}.scale")) for home in full} == pytest.approx(full, rel=1e-4)


@pytest.mark.parametrize("softmax", ["log2:4 tensor", "int4 token dynamic", "float"])
def test_other_specs_are_left_alone(context, softmax):
    """What the recipe has settled is not changed."""
    _, notes = chosen(context, softmax)
    assert notes["softmax outputs"] == 0


def test_what_was_fitted_is_refused(context):
    """After a pass that fits inputs there is nothing left to choose, and it says so."""
    steps = [Assign(softmax="int4 tensor"), QDrop(iterations=2, batch=8, rows=32), Daq()]
    with pytest.raises(PreconditionError, match=r"daq: '.*' has been fitted already.*right after 'assign'"):
        PassManager(steps).run(copy.deepcopy(context.reference), context)


def test_as_many_rows_as_memory_has_room_for(context, monkeypatch):
    """Of each time group; all of them where there is room, one at least where there is none."""
    seen, real = [], Daq._choice

    def watched(self, slot, p, value):
        seen.append(len(p))
        return real(self, slot, p, value)

    monkeypatch.setattr(Daq, "_choice", watched)
    for budget, expected in ((4 << 30, 8), (1, 1)):
        seen.clear()
        chosen(attrs.evolve(context, memory_budget=budget), "int4 tensor time:4")
        assert set(seen) == {expected}
