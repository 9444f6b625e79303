"""The engine learns what brute force finds, and leaves what `simulate` carries out."""

from __future__ import annotations

import copy
import itertools

import attrs
import pytest
import torch
from learned import FEW, bytes_of, prepared, run
from qpass_passes.adaround import AdaRound
from qpass_passes.assign import Assign
from qpass_passes.brecq import Brecq
from qpass_passes.fitting import fit_inputs, fit_weights
from qpass_passes.learn_steps import LearnSteps
from qpass_passes.qdrop import QDrop
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import Objective, Reconstruction, engine, reconstruct
from qpass_passes.reconstruction.block import batch_of
from qpass_passes.reconstruction.chain import chain, cut_into
from qpass_passes.reconstruction.rows import Pool
from qpass_passes.reconstruction.soft import SoftBlock
from qpass_passes.reconstruction.streams import Streams
from qpass_passes.simulate import Simulate
from torch import nn

from qpass.activations import Samples
from qpass.errors import PreconditionError
from qpass.graph import block_module, trace
from qpass.progress import Task
from qpass.slots import find, slots, weight_of


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_the_chain_runs_on_what_it_keeps(context, unit):
    """Dropping each tensor where the chain says it dies, the last output is the model's."""
    graph = prepared(context)
    samples = context.get(context.calibration, graph)
    cut = chain(graph, cut_into(graph, unit), samples, context.device, budget=context.memory_budget)
    inputs = tuple(part[:3] for part in samples.inputs)
    given = list(graph.graph.find_nodes(op="placeholder"))
    live = dict(zip(given, inputs, strict=True))
    most = 0
    with torch.no_grad():
        for block, gone in zip(cut.blocks, cut.dies, strict=True):
            made = block_module(graph, block)(*(live[node] for node in block.inputs))
            live.update(zip(block.outputs, made, strict=True))
            kept = [n for n in live if n not in given and cut.shapes[n].rows]
            most = max(most, sum(live[n][0].nbytes * (1 + (n in cut.differs)) for n in kept))
            output = live.get(graph.graph.output_node().args[0])
            for node in gone:
                del live[node]
        expected = graph(*inputs)
    assert torch.equal(output, expected)
    assert cut.peaks(100, 10**9) == (100 * most, 0)


class Sum(nn.Module):
    """One linear layer, called as a denoiser is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, bias=False)
        self.a = nn.Linear(8, 2, bias=False)
        self.last = nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.a(self.first(x))))


def test_it_finds_what_brute_force_finds(context):
    """Eight weights to an output and correlated inputs: one of the best 3 % of all 256 roundings."""
    torch.manual_seed(0)
    model = Sum()
    x, t = torch.randn(256, 3) @ torch.randn(3, 8) + 0.1 * torch.randn(256, 8), torch.zeros(256)
    graph = trace(model, (x[:2], t[:2]))
    keep = ("first", "last")
    graph = Assign(weight="int3 channel", input="float", keep=keep).run(graph, context).graph
    samples = Samples(inputs=(x, t))

    fit_weights(graph, Mse(), context)
    objective = Objective(unit="layer", iterations=1500, rate=1e-2, batch=64)
    (trace_,) = Reconstruction(graph=graph, samples=samples, objective=objective, ctx=context, key="brute").run()
    (slot,) = slots(graph)
    weight, scale = weight_of(graph, slot).detach(), graph.get_buffer("a.weight_q.scale").reshape(-1, 1)
    floor = (weight * scale.reciprocal()).floor()
    seen = model.first(x).detach()

    def error(codes, row):
        return float(((seen @ (weight[row] - codes * scale[row])) ** 2).mean())

    found = graph.get_buffer("a.weight_q.codes").float()
    for row in range(2):
        every = [
            error((floor[row] + torch.tensor(up, dtype=torch.float32)).clamp(-4, 3), row)
            for up in itertools.product((0, 1), repeat=8)
        ]
        nearest = error((weight[row] * scale[row].reciprocal()).round().clamp(-4, 3), row)
        assert sum(one < error(found[row], row) for one in every) < 8
        assert error(found[row], row) < nearest
    assert trace_.after < trace_.before


@pytest.mark.parametrize(
    "passes",
    [
        (AdaRound(**FEW),),
        (Brecq(**FEW), LearnSteps(**FEW)),
        (QDrop(**FEW),),
        (Brecq(**FEW, precision="bfloat16"),),
        (QDrop(**FEW, polish=50),),
    ],
    ids=["adaround", "brecq", "qdrop", "bf16", "polished"],
)
@pytest.mark.parametrize("input_", ["int8 tensor", "int6 tensor time:2", "int8 token dynamic"])
def test_what_it_leaves_is_what_simulate_carries_out(context, passes, input_, monkeypatch):
    """The rounded model that the engine rolls forward gives, output for output, what the realised graph gives."""
    outputs = {}
    monkeypatch.setattr(engine.Streams, "drop", lambda self, nodes: outputs.update(stream=self))
    graph = run(context, *passes, input=input_, edge_input=input_)
    last = graph.graph.output_node().args[0]
    seen = outputs["stream"].read_rounded(last, torch.arange(32))
    kept = {name for name in bytes_of(graph) if name.endswith((".codes", ".scale"))}
    before = {name: bytes_of(graph)[name] for name in kept}
    realised = Simulate().run(graph, context).graph
    assert {name: bytes_of(realised)[name] for name in kept} == before
    if passes[-1].objective().activations:
        samples = context.get(context.calibration, graph)
        with torch.no_grad():
            out, plain = realised(*samples.inputs), context.reference(*samples.inputs)
        # rows are kept contiguous, so one convolution sums in another order: 1e-7, which the next quantizer swallows
        # but where a value takes the next code; most rows of a static quantizer come out equal to the bit
        if "dynamic" not in input_:
            assert (out == seen).flatten(1).all(1).float().mean() > 0.5
        assert (out - seen).norm() < 0.2 * (plain - seen).norm()


def test_a_batch_spans_all_rows():
    """One from each stretch; every row as often as any other, where stretches split rows too; all, if there is room."""
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert (batch_of(20, 5, draws) // 4).tolist() == [0, 1, 2, 3, 4]
        assert batch_of(7, 16, draws).tolist() == list(range(7))
    often = torch.stack([batch_of(10, 4, draws) for _ in range(20_000)]).flatten().bincount(minlength=10)
    assert often.sum() == 80_000
    assert ((often - 8000).abs() < 5 * 8000**0.5).all()


def test_soft_rounding_starts_at_the_weights(context):
    """Before the first iteration a block with soft weights is the full-precision block."""

    graph = prepared(context)
    fit_weights(graph, Mse(), context)
    samples = context.get(context.calibration, graph)
    cut = chain(graph, cut_into(graph, "block"), samples, context.device, budget=context.memory_budget)
    live = dict(zip(graph.graph.find_nodes(op="placeholder"), samples.inputs, strict=True))
    inside = 0
    with torch.no_grad():
        for block in cut.blocks:
            given = [live[node] for node in block.inputs]
            made = block_module(graph, block)(*given)
            soft = SoftBlock(graph, block, weights=True, steps=False)
            for one in soft.roundings():
                # weights beyond the last code are clipped, soft or not
                inside += 1
                one.soft = True
                within = (one.original * one.scale.reciprocal()).abs() < 7
                assert torch.allclose(one.weight()[within], one.original[within], atol=1e-6)
            live.update(zip(block.outputs, made, strict=True))
    assert inside > 5


def test_auto_without_instructions_for_bf16(context, monkeypatch):
    """It is fp32, to the byte; bf16, asked for by name, leaves other codes."""
    made = {p: bytes_of(run(context, Brecq(**FEW, precision=p))) for p in ("float32", "bfloat16")}
    assert made["float32"] != made["bfloat16"]
    monkeypatch.setattr(f"{Objective.__module__}.multiplies_bfloat16", lambda device: False)
    assert bytes_of(run(context, Brecq(**FEW, precision="auto"))) == made["float32"]


def test_auto_is_for_errors_that_bf16_does_not_blur(context, monkeypatch):
    """At two bits the error of rounding is far above bf16's own, but where layers stay at eight; at eight nowhere."""
    monkeypatch.setattr(f"{Objective.__module__}.multiplies_bfloat16", lambda device: True)
    half = {}
    for bits in (2, 8):
        graph = Assign(weight=f"int{bits} channel").run(copy.deepcopy(context.reference), context).graph
        notes = Brecq(**FEW, precision="auto").run(graph, context).notes
        half[bits] = {name for name, block in notes["blocks"].items() if block.get("precision") == "bfloat16"}
    assert "mid_block.resnets.0" in half[2]
    assert not half[8]


def test_it_helps(context):
    """At four bits every block's error on rows it did not learn from falls, or rounding to nearest stays."""
    graph = prepared(context)
    notes = Brecq(iterations=200, batch=8, rows=32, rate=1e-2).run(graph, context).notes
    before, after = (sum(block["loss"][i] for block in notes["blocks"].values()) for i in (0, 1))
    assert after < 0.8 * before
    assert all(block["loss"][1] <= block["loss"][0] for block in notes["blocks"].values())


def test_a_second_pass_leaves_what_the_first_has_rounded(context):
    """Nothing is left to learn, and not a byte changes."""
    graph = run(context, AdaRound(**FEW))
    first = bytes_of(graph)
    again = Brecq(**FEW).run(graph, context)
    assert again.notes["blocks"] == {}
    assert bytes_of(graph) == first


def test_compiled_it_learns_the_same(context, tmp_path):
    """One block of the UNet, on the same draws: the same codes but for a few on edge, and a loss as low."""
    graph, found = prepared(context), {}
    fit_weights(graph, Mse(), context)
    samples = context.get(context.calibration, graph)
    for compiled in (False, True):
        objective = Objective(iterations=100, batch=8, rate=0.1, compiled=compiled)
        made = Reconstruction(
            graph=copy.deepcopy(graph), samples=samples, objective=objective, key="same",
            ctx=attrs.evolve(context, scratch=tmp_path / str(compiled)), match=("mid_block.resnets.0",),
        )  # fmt: skip
        (found[compiled],) = made.run()
        found[compiled, "codes"] = find(made.graph, "mid_block.resnets.0.conv1.weight_q.codes")
    assert found[True].before == found[False].before
    assert found[False].after < 0.9 * found[False].before
    assert found[True].after == pytest.approx(found[False].after, rel=0.02)
    assert (found[True, "codes"] != found[False, "codes"]).float().mean() < 0.02
    assert found[False].flipped > 0.1


def test_step_sizes_stay_positive(context):
    """At a rate a hundred times the step size itself, no iteration leaves one at zero or below."""
    graph = prepared(context)
    fit_weights(graph, Mse(), context)
    fit_inputs(graph, Mse(), 32, context)
    samples = context.get(context.calibration, graph)
    cut = chain(graph, cut_into(graph, "block"), samples, context.device, budget=context.memory_budget)
    streams = Streams(graph, cut, samples, Pool(10**9, context.scratch), context.device)
    block = cut.blocks[0]
    soft = SoftBlock(graph, block, weights=False, steps=True)
    first = [one.scale.detach().clone() for one in soft.learned_steps()]

    class Looks(Task):
        least = torch.inf

        def advance(self, amount=1):
            for one, scale in zip(soft.learned_steps(), first, strict=True):
                self.least = min(self.least, float((one.scale.detach() / scale).min()))

    streams.advance_full(block, block_module(graph, block))
    rate = 100 * float(max(scale.max() for scale in first))
    objective = Objective(weights=False, steps=True, activations=True, step_rate=rate, iterations=20, batch=8)
    looks = Looks()
    reconstruct(soft, streams.data(), objective, (0,), 0, looks)
    assert 0 < looks.least < 0.1


@pytest.mark.parametrize("step", [AdaRound(only=("mid_block.*",), **FEW), QDrop(only=("mid_block.*",), **FEW)])
def test_only_what_is_named_learns(context, step):
    """Of a layer or block that no glob matches nothing is left but what was fitted; a learned one is as ever."""
    graph = run(context, step)
    (made,) = (step.run(prepared(context), context).notes["blocks"],)
    assert made
    assert all(name.startswith("mid_block.") for name in made)
    learned = {
        slot.home for slot in slots(graph) if slot.index < 0 and find(graph, f"{slot.home}.codes") is not None
    }
    assert learned
    assert all(home.startswith("mid_block.") for home in learned)
    assert Simulate().run(graph, context).changed


@pytest.mark.parametrize("step", [AdaRound, Brecq, QDrop, LearnSteps])
def test_a_glob_that_matches_nothing_is_an_error(context, step):
    """It names the pass, the glob and what is near."""
    graph = prepared(context)
    with pytest.raises(PreconditionError, match=rf"{step.name}: the glob 'mid_blck\.\*' in 'only' matches no "):
        step(only=("mid_blck.*",)).requires(graph, context)
    step(only=("mid_block.*",)).requires(graph, context)


@pytest.mark.parametrize("step_decay", [True, False])
def test_the_rate_of_step_sizes_falls_along_a_cosine(context, monkeypatch, step_decay):
    """4e-4, then (1 + cos 45 deg) / 2 of it, half, (1 - cos 45 deg) / 2; the rate of the rounding stays."""
    seen = []
    step = torch.optim.Adam.step

    def watched(self, *given):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    few = {**FEW, "iterations": 4, "rate": 0.1, "step_rate": 4e-4}
    run(context, QDrop(**few, step_decay=step_decay))
    # what tries how long a block takes does so in 3 iterations, whose rates are the tries' own
    learned = seen[-4:]
    assert [rounding for rounding, _ in learned] == [0.1] * 4
    falling = [4e-4, 3.414214e-4, 2e-4, 0.585786e-4]
    assert [steps for _, steps in learned] == pytest.approx(falling if step_decay else [4e-4] * 4)
