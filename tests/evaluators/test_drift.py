"""Drift on a tiny diffusion model with planted noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from qpass_evaluators import Drift, Size
from qpass_evaluators.clipped import clipped
from qpass_evaluators.images import GraphImages, ReferenceImages
from qpass_evaluators.noise import OUTPUT, Power, joined, measure
from torch.fx import GraphModule

from qpass.evaluator import EvaluationError, Metric, Observation, Subject, refuse
from qpass.model import ModelAdapter
from qpass.protocol import differences
from qpass.sampling import Sampling, generator, trajectory


@pytest.fixture
def planted(teacher: GraphModule, specify: Callable[..., GraphModule], spec: Callable[..., Any]) -> GraphModule:
    """The teacher with the last convolution's weight larger by 1 %: its output has noise of exactly 1 %."""
    graph = specify(teacher, first=spec(8), last=spec(8))
    with torch.no_grad():
        graph.last.weight *= 1.01
    return graph


def observe(graph: GraphModule, ctx: Any, drift: Drift) -> tuple[Observation, Observation]:
    original = drift.observe(Subject(role="original", graph=ctx.reference), ctx)
    return drift.observe(Subject(role="quantized", graph=graph), ctx), original


def by_name(metrics: Any) -> dict[str, Metric]:
    return {m.name: m for m in metrics}


def test_planted_noise_has_its_sqnr(teacher: GraphModule, planted: GraphModule, context: Any) -> None:
    """An output that is 1 % too large has 40 dB at every timestep; an untouched node before it is infinite."""
    table = measure(planted, context(teacher), rows=5)
    assert list(table.cells) == ["first", "last", OUTPUT]
    assert table.times == (750.0, 500.0, 250.0, 0.0)
    for step in range(4):
        assert table.cells[OUTPUT][step].sqnr == pytest.approx(40.0, abs=1e-3)
        assert table.cells["first"][step].sqnr == math.inf
    assert table.pooled("last").sqnr == pytest.approx(40.0, abs=1e-3)


def test_sums_are_those_of_the_whole_trajectory(teacher: GraphModule, planted: GraphModule, context: Any) -> None:
    """Signal and noise, streamed in batches of 3, equal those of all 5 images' activations held at once."""
    with torch.no_grad():
        planted.first.weight[0] += 0.1
    ctx = context(teacher)
    table = measure(planted, ctx, rows=5)
    whole = Sampling(steps=4, batch=5)
    with torch.no_grad():
        moments = list(
            trajectory(
                teacher, ctx.model.sampler(), whole,
                seed=0, stream="evaluation", indices=range(5), device=ctx.device,
            )
        )  # fmt: skip
        for moment in moments:
            s, q = teacher.first(moment.inputs[0]).double(), planted.first(moment.inputs[0]).double()
            power = table.cells["first"][moment.index]
            assert power.signal == pytest.approx(float((s**2).sum()), rel=1e-5)
            assert power.noise == pytest.approx(float(((s - q) ** 2).sum()), rel=1e-4)
            s, q = teacher(*moment.inputs).double(), planted(*moment.inputs).double()
            assert table.cells[OUTPUT][moment.index].noise == pytest.approx(float(((s - q) ** 2).sum()), rel=1e-4)


def test_metrics_of_a_pair(teacher: GraphModule, planted: GraphModule, context: Any) -> None:
    """SQNR, PSNR and SSIM describe the pair, name their protocol, and the images come from the same noise."""
    drift = Drift(samples=4, rows=2)
    candidate, original = observe(planted, context(teacher), drift)
    metrics = by_name(drift.score(candidate, original))
    assert set(metrics) == {"sqnr", "psnr", "ssim", "clipped"}
    assert {m.subject for m in metrics.values() if m.name != "clipped"} == {"pair"}
    assert metrics["sqnr"].value == pytest.approx(40.0, abs=1e-3)
    a, b = original.images["samples"].astype(float), candidate.images["samples"].astype(float)
    assert a.shape == (4, 12, 12, 3)
    assert metrics["psnr"].value == pytest.approx(10 * math.log10(255**2 / ((a - b) ** 2).mean()))
    assert 0.9 < metrics["ssim"].value < 1
    protocol = {"sampler": "ddim", "steps": 4, "eta": 0.0, "guidance": 1.0, "seed": 0}
    assert protocol.items() <= metrics["psnr"].protocol.items()
    assert metrics["psnr"].protocol["images"] == 4
    assert metrics["sqnr"].protocol["rows"] == 2
    assert candidate.series["sqnr by timestep"].x == (750.0, 500.0, 250.0, 0.0)
    assert candidate.series["sqnr by node"].x == ("first", "last")
    assert candidate.series["sqnr by timestep: last"].y == candidate.series["sqnr by timestep"].y


def test_protocols_are_those_of_the_measurement(
    teacher: GraphModule, planted: GraphModule, context: Any, tmp_path: Path
) -> None:
    """Images drawn in bf16 say so; SQNR and what is clipped are equal to the last bit to those without, and look it."""
    drift, found = Drift(samples=2, rows=2), []
    for precision in ("model", "bfloat16"):
        ctx = context(
            teacher, sampling=Sampling(steps=2, batch=2, precision=precision), scratch=tmp_path / precision
        )
        found.append(by_name(drift.score(*observe(planted, ctx, drift))))
    for name in ("sqnr", "clipped"):
        assert found[0][name] == found[1][name]
        assert not {"precision", "compiled"} & found[0][name].protocol.keys()
    for name in ("psnr", "ssim"):
        assert differences(found[0][name].protocol, found[1][name].protocol) == [
            "precision 'model' against 'bfloat16'"
        ]


@pytest.mark.parametrize(("side", "window"), [(32, 11), (8, 7)])
def test_the_window_is_the_one_used(side: int, window: int) -> None:
    """On images below 11 pixels SSIM's is smaller, and the protocol says by how much."""
    seen = Observation(images={"samples": np.zeros((1, side, side, 3), np.uint8)})
    protocol = by_name(Drift().score(seen, seen))["ssim"].protocol
    assert protocol["window"] == f"gaussian {window}, sigma 1.5, valid region, mean over channels"


def test_a_model_does_not_drift_from_itself(teacher: GraphModule, context: Any) -> None:
    """An exact copy has infinite SQNR and PSNR, and SSIM 1."""
    drift = Drift(samples=2, rows=2)
    candidate, original = observe(copy.deepcopy(teacher), context(teacher), drift)
    metrics = by_name(drift.score(candidate, original))
    assert metrics["sqnr"].value == metrics["psnr"].value == math.inf
    assert metrics["ssim"].value == 1.0


def test_the_share_that_the_first_step_clips(
    teacher: GraphModule, planted: GraphModule, context: Callable[..., Any]
) -> None:
    """It is counted on the x0 of diffusers' own step, for both models; without the clip there is no such figure."""
    with torch.no_grad():
        planted.last.weight *= 3
    ctx = context(teacher)
    drift = Drift(samples=2, rows=5)
    candidate, original = observe(planted, ctx, drift)
    metrics = [m for m in drift.score(candidate, original) if m.name == "clipped"]
    assert [m.subject for m in metrics] == ["original", "quantized"]
    scheduler = DDIMScheduler(**{**ctx.model.sampler().scheduler_config, "clip_sample": False})
    scheduler.set_timesteps(4)
    x = torch.stack([torch.randn(3, 12, 12, generator=generator(0, "evaluation", i)) for i in range(5)])
    t = scheduler.timesteps[0]
    for graph, metric in zip((teacher, planted), metrics, strict=True):
        x0 = scheduler.step(graph(x, t.expand(5)), t, x).pred_original_sample
        assert metric.value == pytest.approx(100 * float((x0.abs() > 1).float().mean()))
    assert metrics[0].value != metrics[1].value
    ctx = attrs.evolve(ctx, sampling=attrs.evolve(ctx.sampling, clip="never"))
    assert clipped(planted, ctx, 5) is None


def test_a_model_that_predicts_variance_too(teacher: GraphModule, context: Any) -> None:
    """What is clipped is its image: all figures are those of the same model without variance, drawn alike."""
    wide = copy.deepcopy(teacher)
    wide.last = torch.nn.Conv2d(8, 6, 3, padding=1, bias=False)
    with torch.no_grad():
        wide.last.weight.copy_(torch.cat([teacher.last.weight, torch.zeros(3, 8, 3, 3)]))
    drift = Drift(samples=2, rows=2)
    ctx = context(wide, sampling=Sampling(scheduler="ddpm", variance="learned-range", steps=4, batch=3))
    candidate, original = observe(copy.deepcopy(wide), ctx, drift)
    metrics = by_name(drift.score(candidate, original))
    assert metrics["sqnr"].value == metrics["psnr"].value == math.inf
    narrow = context(teacher, sampling=Sampling(scheduler="ddpm", variance="fixed-small", steps=4, batch=3))
    assert metrics["clipped"].value == 100 * clipped(teacher, narrow, 2) > 0  # type: ignore[operator]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_counts_as_clipped(teacher: GraphModule, context: Any, value: float) -> None:
    """A model that puts out NaN has nothing within the range, and does not look like one that needs no clip."""
    graph = copy.deepcopy(teacher)
    with torch.no_grad():
        graph.last.weight.fill_(value)
    assert clipped(graph, context(teacher), 2) == 1.0


def test_values_overwritten_later_are_compared_as_they_were(context: Any, spec: Callable[..., Any]) -> None:
    """An in-place op after a node in the teacher does not change what the node is held to."""

    class InPlace(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.first(x).mul_(2.0)

    reference = torch.fx.symbolic_trace(InPlace().eval())
    for node in reference.graph.nodes:
        node.meta["origin"] = str(node.target)
    graph = copy.deepcopy(reference)
    next(n for n in graph.graph.nodes if n.target == "first").meta["qpass"] = spec(8)
    assert measure(graph, context(reference), rows=1).pooled("first").noise == 0.0


def test_origins_that_name_no_single_node_are_skipped(
    teacher: GraphModule, specify: Callable[..., GraphModule], spec: Callable[..., Any]
) -> None:
    """A node that the teacher lacks, or an origin that two nodes share, is not compared."""
    graph = specify(teacher, first=spec(8), time=spec(8), last=spec(8))
    named = {n.target: n for n in graph.graph.nodes if n.op == "call_module"}
    named["first"].meta["origin"] = "attention/matmul[0]"
    named["time"].meta["origin"] = "last"
    ours, theirs = joined(graph, teacher)
    assert not ours
    assert not theirs
    named["time"].meta["origin"] = "time"
    ours, theirs = joined(graph, teacher)
    assert list(ours.values()) == list(theirs.values()) == ["time", "last"]


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (1.0, math.inf, -math.inf),
        (5.0, 5.0, 0.0),
    ],
)
def test_sqnr_at_its_limits(signal: float, noise: float, expected: float) -> None:
    """No noise is infinite, no signal or endless noise minus infinite, and nothing divides by zero."""
    assert Power(signal=signal, noise=noise).sqnr == expected


def test_images_are_drawn_once(teacher: GraphModule, context: Any) -> None:
    """Two evaluators that ask for the same images share them, and they come back from disk as they were."""
    ctx = context(teacher)
    first = ctx.get(ReferenceImages(count=3), teacher)
    assert ctx.get(ReferenceImages(count=3), teacher) is first
    assert ctx.get(GraphImages(count=3), teacher) is ctx.get(GraphImages(count=3), teacher)
    np.testing.assert_array_equal(first, ctx.get(GraphImages(count=3), teacher))
    analysis = ReferenceImages(count=3)
    np.testing.assert_array_equal(analysis.restore(analysis.dump(first)), first)
    np.testing.assert_array_equal(analysis.merge([first[:1], first[1:]]), first)


def test_a_model_that_cannot_sample_is_refused(mute: ModelAdapter) -> None:
    """An evaluator of images names itself, the reason and the way out; one of the model alone is let through."""
    with pytest.raises(EvaluationError, match=r"'drift'.*'mute' has no scheduler.*remove use = 'drift'"):
        refuse(Drift(), mute)
    refuse(Size(), mute)


@pytest.mark.parametrize("options", [{"samples": 0}, {"rows": 0}])
def test_options_are_checked(options: dict[str, int]) -> None:
    """Counts that make no sense are refused where they are given."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Drift(**options)
