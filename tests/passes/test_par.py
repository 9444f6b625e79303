"""PAR learns from what the quantized model meets, starts again from what was learned, and resumes."""

from __future__ import annotations

import copy
from typing import ClassVar

import attrs
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.calibration import from_sampling
from qpass_passes.calibration.from_sampling import FromSampling
from qpass_passes.par import Par, distances, joined, realised
from qpass_passes.qdrop import QDrop
from qpass_passes.reconstruction import engine
from qpass_passes.simulate import Simulate

from qpass.activations import Samples
from qpass.analysis import Analysis
from qpass.errors import PreconditionError
from qpass.manager import PassManager
from qpass.sampling import trajectory
from qpass.slots import find, slots

FEW = {"iterations": 20, "batch": 8, "rows": 32}
FIRST = QDrop(**FEW)


def run(context, *passes):
    steps = [Assign(weight="int4 channel", input="int4 tensor"), *passes]
    return PassManager(steps).run(copy.deepcopy(context.reference), context)


def codes(graph):
    return {s.home: find(graph, f"{s.home}.codes").clone() for s in slots(graph) if s.index < 0}


def test_it_learns_from_what_the_quantized_model_meets(context, monkeypatch):
    """The rows of each round are those along a sampling by what `simulate` makes of the graph at that moment."""
    met = []
    real = engine.Reconstruction.run

    def watched(self):
        if self.objective.restart:
            met.append((self.samples, self.aims, copy.deepcopy(self.graph)))
        return real(self)

    monkeypatch.setattr(engine.Reconstruction, "run", watched)
    run(context, FIRST, Par(**FEW, mix=0.0, rounds=2, target="trajectory", rate=0.2))
    assert len(met) == 2
    assert codes(met[0][2]).keys() == codes(met[1][2]).keys()
    assert any(not torch.equal(a, b) for a, b in zip(*(codes(one[2]).values() for one in met), strict=True))
    for samples, aims, graph in met:
        quantized = Simulate().run(graph, context).graph
        for rows, model in ((samples, quantized), (aims, context.reference)):
            kept = [[] for _ in range(4)]
            for start in (0, 4):  # the batches that the context's sampling has
                for moment in trajectory(
                    model, context.model.sampler(), context.sampling, seed=context.seed, stream="calibration",
                    indices=list(range(start, start + 4)), device=context.device,
                ):  # fmt: skip
                    kept[moment.index].append(moment.inputs[0])
            assert torch.equal(rows.inputs[0], torch.cat([part for step in kept for part in step]))


def test_a_share_of_the_images_stays_with_full_precision(context):
    """Of eight images, two at a mix of a quarter; the others are those that the quantized model draws."""
    graph = run(context, FIRST).graph
    chosen = context.calibration.chosen(context.reference, context)
    step = Par(**{**FEW, "rows": 1000}, mix=0.25, target="trajectory")
    samples, aims, apart = step._rows(chosen, 1, graph, context)
    same = (samples.inputs[0] == aims.inputs[0]).flatten(1).all(1)
    late = samples.t != samples.t.max()  # at the first step both have the same noise
    assert int(same[late].sum()) == 2 * 3
    assert len(samples) == len(aims) == 8 * 4
    first, *others = apart.values()
    assert first == 0
    assert all(value > 0 for value in others)
    last = (samples.t == samples.t.min()) & ~same
    expected = (samples.inputs[0] - aims.inputs[0])[last]
    assert others[-1] == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-3)


@pytest.mark.parametrize("part", ["all steps", "some steps"])
def test_full_precision_has_sampled_these_rows_before(context, part):
    """Rows of some images out of the calibration set are, one by one, what sampling these images alone gives: bit for
    bit where as many images are sampled at a time, and to fp32's rounding where fewer are left for the last batch."""
    source = torch.Generator().manual_seed(0)
    chosen = torch.ones(4, 8, dtype=torch.bool)
    if part == "some steps":
        chosen = torch.rand(4, 8, generator=source) < 0.6
        chosen[-1] = True  # every image is sampled to the end, so that batches are of four
    whole = from_sampling.rows(chosen, context.reference, context, "whole")
    for images, exact in ((torch.tensor([6, 1, 3, 4]), True), (torch.tensor([0, 2, 3, 5, 6, 7]), False)):
        wanted = torch.zeros_like(chosen)
        wanted[:, images] = chosen[:, images]
        alone = from_sampling.rows(wanted, context.reference, context, "alone")
        found = from_sampling.part_of(whole, chosen, wanted, context.sampling.batch)
        for ours, theirs in zip(found.inputs, alone.inputs, strict=True):
            assert torch.equal(ours, theirs) if exact else torch.allclose(ours, theirs, atol=1e-4)


def test_full_precision_samples_once(context, monkeypatch):
    """For the calibration set; in the rounds the quantized model alone samples."""
    context.get(context.calibration, context.reference)
    models, real = [], from_sampling.trajectory

    def watched(model, *args, **options):
        models.append(model)
        return real(model, *args, **options)

    monkeypatch.setattr(from_sampling, "trajectory", watched)
    run(context, FIRST, Par(**FEW, mix=0.5, rounds=2))
    assert len(models) == 2  # rounds, each with one batch of four images
    assert context.reference not in models


def test_targets(context, monkeypatch):
    """A block is to give what full precision gives on the same inputs, or on those of its own way."""
    graph = run(context, FIRST).graph
    real, seen = engine.reconstruct, {}

    def reconstruct(soft, data, objective, targets, seed, task):
        node = soft.block.outputs[targets[0]]
        seen.setdefault(soft.block.name, data.target(node, torch.arange(data.count)).clone())
        return real(soft, data, attrs.evolve(objective, iterations=1), targets, seed, task)

    monkeypatch.setattr(engine, "reconstruct", reconstruct)
    for target in ("teacher", "trajectory"):
        seen.clear()
        step = Par(**{**FEW, "rows": 1000}, rounds=1, target=target, mix=0.0)
        chosen = context.calibration.chosen(context.reference, context)
        samples, aims, _ = step._rows(chosen, 1, graph, context)
        assert (aims is None) == (target == "teacher")
        scratch = attrs.evolve(context, scratch=context.scratch / target)
        step.run(copy.deepcopy(graph), scratch)
        with torch.no_grad():
            expected = context.reference(*(aims or samples).inputs)
        last = list(seen)[-1]
        assert torch.allclose(seen[last], expected, atol=1e-5), last
    assert not torch.allclose(expected, context.reference(*samples.inputs), atol=1e-3)


def test_what_was_learned_is_where_it_starts(context):
    """With a rate too small to move anything the codes stay; with a large one some of them change sides."""
    graph = run(context, FIRST).graph
    before = codes(graph)
    still = Par(**FEW, rounds=1, rate=1e-9, step_rate=1e-12, strength=0.0)
    kept = codes(still.run(copy.deepcopy(graph), context).graph)
    assert all(torch.equal(kept[home], before[home]) for home in before)
    moving = Par(**{**FEW, "iterations": 100}, rounds=1, rate=3e-2)
    result = moving.run(copy.deepcopy(graph), context)
    moved = codes(result.graph)
    shares = [float((moved[home] != before[home]).float().mean()) for home in before]
    assert max(shares) > 0.005
    assert all(int((moved[home].int() - before[home].int()).abs().max()) <= 1 for home in before)
    losses = [block["loss"] for block in result.notes["round 1"]["blocks"].values()]
    assert all(after <= first for first, after in losses)


def test_interrupted_and_resumed(context, tmp_path, monkeypatch):
    """Stopped in the second round and started again, it gives the bytes of an unbroken run."""
    step = Par(**FEW, rounds=2)
    graph = run(context, FIRST).graph
    whole = step.run(copy.deepcopy(graph), attrs.evolve(context, scratch=tmp_path / "whole")).graph
    broken = attrs.evolve(context, scratch=tmp_path / "broken")
    real, calls = engine.reconstruct, []

    class KilledError(Exception):
        pass

    def reconstruct(soft, *rest):
        calls.append(soft.block.name)
        if calls.count(soft.block.name) == 2 and len(set(calls)) < len(calls) - 1:
            raise KilledError
        return real(soft, *rest)

    monkeypatch.setattr(engine, "reconstruct", reconstruct)
    with pytest.raises(KilledError):
        step.run(copy.deepcopy(graph), broken)
    monkeypatch.setattr(engine, "reconstruct", real)
    resumed = step.run(copy.deepcopy(graph), broken).graph
    expected = dict(whole.named_buffers())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.named_buffers())


def test_the_graph_itself_is_not_realised(context):
    """A copy is what samples: the graph keeps its weights, and what follows finds it as any other pass leaves it."""
    graph = run(context, FIRST).graph
    before = {name: tensor.clone() for name, tensor in graph.named_parameters()}
    text = graph.code
    made = realised(graph)
    assert graph.code == text
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.named_parameters())
    expected = Simulate().run(copy.deepcopy(graph), context).graph
    given = next(context.get(context.calibration, graph).batches(4, context.device))
    assert torch.equal(made(*given), expected(*given))


def test_rows_of_two_sets():
    """Joined they are one set; apart, the root mean square at each timestep: 3 and 4 by hand."""
    t = torch.tensor([9, 9, 1, 1])
    ours = Samples(inputs=(torch.tensor([[0.0], [3.0], [4.0], [0.0]]), t, torch.ones(1, 2)), unbatched=(2,))
    theirs = Samples(inputs=(torch.tensor([[3.0], [0.0], [0.0], [-4.0]]), t, torch.ones(1, 2)), unbatched=(2,))
    assert distances(ours, theirs) == {9: 3.0, 1: 4.0}
    both = joined(ours, theirs)
    assert len(both) == 8
    assert both.inputs[2].shape == (1, 2)


def test_a_calibration_set_that_does_not_sample(context):
    """It cannot be drawn anew, which is said before anything is."""

    @attrs.frozen(kw_only=True)
    class Noise(Analysis):
        name: ClassVar[str] = "noise"

    assert not issubclass(Noise, FromSampling)
    with pytest.raises(PreconditionError, match=r"par: calibration 'noise' does not sample.*uniform-steps"):
        Par().requires(context.reference, attrs.evolve(context, calibration=Noise))
