"""Where one group of timesteps ends and the next begins: by steps, in even stretches, or where ranges change."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.daq import Daq
from qpass_passes.fitting import fit_inputs, settled
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import Simulate
from qpass_passes.tcr import Tcr

from qpass.activations import run_recording
from qpass.artifact.folder import Artifact, load_artifact, save
from qpass.kernels import reference
from qpass.manager import PassManager
from qpass.slots import read_params, slots
from qpass.spec import QuantSpec
from qpass.timegroups import alike, edges_for


def lost(low, high, starts):
    """Bits of resolution lost to sharing a range, from its definition."""
    bits = 0.0
    for a, b in itertools.pairwise([0, *starts, len(low)]):
        for k in range(low.shape[1]):
            whole = max(0, *high[a:b, k].tolist(), 0) - min(0, *low[a:b, k].tolist(), 0)
            own = [max(0, float(high[t, k])) - min(0, float(low[t, k])) for t in range(a, b)]
            bits += sum(math.log2(whole / one) for one in own if one > 0)
    return bits


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 9])
def test_no_other_split_loses_less(groups):
    """Brute force over all splits of nine timesteps, with a dead set of parameters and a dead timestep among them."""
    torch.manual_seed(groups)
    low, high = -torch.rand(9, 3).exp2(), (3 * torch.rand(9, 3)).exp2()
    low[:, 1] = high[:, 1] = low[4] = high[4] = 0
    found = alike(low, high, groups)
    best = min(lost(low, high, starts) for starts in itertools.combinations(range(1, 9), groups - 1))
    assert found == sorted(set(found))
    assert len(found) == groups - 1
    assert lost(low, high, found) == pytest.approx(best, abs=1e-9)


def test_even_stretches_hold_unequal_numbers_of_steps():
    """Of a schedule that is dense at its end, where runs of as many steps each are short there."""
    t = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 500, 750, 999])

    def sizes(split):
        edges = edges_for(QuantSpec(time_groups=4, time_split=split), t)
        return reference.time_group(t, edges).bincount(minlength=4).tolist()

    assert sizes("steps") == [3, 3, 3, 3]
    assert sizes("even") == [9, 0, 1, 2]


def test_each_tensor_has_the_groups_of_its_own_ranges(context):
    """What each layer's edges lose on what it reads is the least possible, and the layers do not agree on them."""
    samples = context.get(context.calibration, context.reference)
    graph = Assign(input="int4 tensor time:3:range").run(copy.deepcopy(context.reference), context).graph
    fit_inputs(graph, AbsMax(), 1000, context)
    t = torch.tensor(sorted(set(samples.t.tolist())))
    splits, compared = set(), 0
    for slot in slots(graph):
        if slot.index < 0 or slot.spec.time_split != "range":
            continue
        edges = read_params(graph, slot).tensors["edges"]
        splits.add(tuple(edges.tolist()))
        x = run_recording(graph, [slot.source], samples.inputs)[slot.source].flatten(1)
        low = torch.stack([x[samples.t == one].min() for one in t]).unsqueeze(1)
        high = torch.stack([x[samples.t == one].max() for one in t]).unsqueeze(1)
        starts = [int((t < edge).sum()) for edge in edges]
        every = [lost(low, high, s) for s in itertools.combinations(range(1, len(t)), 2)]
        assert lost(low, high, starts) == pytest.approx(min(every), abs=1e-4), slot.home
        compared += 1
    assert compared > 5
    assert len(splits) > 1


def test_symmetric_ranges_are_those_of_the_larger_side():
    """An input that changes its sign but not its size is one group where levels are symmetric, and else two."""

    class Slotted:
        layout = reference.CHANNEL_LAST

    t = torch.arange(4).repeat_interleave(2)
    x = torch.tensor([5.0, 5, 5, 5, -5, -5, -1, -1]).reshape(8, 1, 1)
    for symmetric, expected in ((True, [2.5]), (False, [1.5])):
        slot = Slotted()
        slot.spec = QuantSpec(time_groups=2, time_split="range", symmetric=symmetric)
        assert settled(edges_for(slot.spec, t), slot, [x], t).tolist() == expected


@pytest.mark.parametrize("split", ["even", "range"])
def test_whole_recipes_take_every_split(context, tmp_path, split):
    """`tcr`, `daq` and the fits agree on them; the artifact, loaded again, computes the same bits."""
    graph = copy.deepcopy(context.reference)
    group = f"int4 tensor time:3:{split}"
    steps = [Assign(input=group, softmax=group), Tcr(trial_rows=16), Daq(), Simulate()]
    done = PassManager(steps).run(graph, context).graph
    save(Artifact(graph=done), tmp_path / "artifact", context.catalog)
    again = load_artifact(tmp_path / "artifact", context.catalog).graph
    inputs = context.get(context.calibration, context.reference).inputs
    with torch.no_grad():
        assert torch.equal(done(*inputs), again(*inputs))
