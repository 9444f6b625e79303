"""Factors by channel on models whose norms are modulated: where they go, and that the model stays what it was."""

from __future__ import annotations

import copy
from collections import Counter
from typing import ClassVar, Literal

import attrs
import pytest
import tiny
import torch
from qpass_passes.assign import Assign
from qpass_passes.equivalence.rescale import rescale
from qpass_passes.equivalence.ties import ties
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.repq import RepQ
from qpass_passes.simulate import Simulate
from qpass_passes.smooth import Smooth
from qpass_passes.tcr import Tcr
from torch import nn

from qpass.activations import Samples, run_recording
from qpass.analysis import Analyses, Analysis
from qpass.artifact.folder import Artifact, load_artifact, save
from qpass.kernels import reference
from qpass.manager import PassManager

# by hand from diffusers' code: each block's attention and feed-forward layers, context's too, and the last norm
MODULATED = {"dit": 2 * 2 + 1, "sd3": (3 + 2) + (2 + 1) + 1, "flux": 4 + 2 + 1, "timm-dit": 2 * 2 + 1}
MODELS = (*MODULATED, "pixart", "ldm")


def assigned(traced):
    """A copy with a spec on every layer."""
    graph = copy.deepcopy(traced)
    Assign(edge_weight="int4 channel", edge_input="int8 tensor", attention="float").run(graph, None)
    return graph


def factor_for(graph, tie, powers):
    """Between 0.01 and 100, a sequence of its own for each tie."""
    width = tie.weights(graph)[0].shape[1]
    exponents = torch.rand(width, generator=torch.Generator().manual_seed(len(tie.name))) * 4 - 2
    r = torch.pow(10.0, exponents)
    return torch.exp2(r.log2().round()) if powers else r


def apart(found, expected):
    """The largest difference, relative to the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("powers", [True, False], ids=["powers of two", "any"])
def test_each_layer_stays_what_it_was(zoo, name, powers):
    """Any factors: each layer's output within 1e-6, the model's within 1e-5. Powers of two change no bit."""
    model, traced = zoo(name)
    inputs = model.example(3, seed=1)
    plain, moved = assigned(traced), assigned(traced)
    before, after = ties(plain), ties(moved)
    factors = [factor_for(moved, tie, powers) for tie in after]
    went = [rescale(moved, tie, factor) for tie, factor in zip(after, factors, strict=True)]
    moved.graph.lint()
    expected = run_recording(plain, [node for tie in before for node in (*tie.calls, *tie.tensors)], inputs)
    read = [node.args[0] for tie in after for node in tie.calls]
    found = run_recording(moved, [*read, *(node for tie in after for node in (*tie.calls, *tie.tensors))], inputs)
    for tie, original, factor in zip(after, before, factors, strict=True):
        for node, then in zip(tie.calls, original.calls, strict=True):
            if any(user.target is torch.ops.aten.chunk.default for user in node.users):
                continue  # a modulation, whose rows are what changes
            x = found[node.args[0]] * (
                factor if tie.layout == reference.CHANNEL_LAST else factor.reshape(-1, 1, 1)
            )
            error = apart(found[node], plain.get_submodule(then.target)(x))
            assert error == 0 if powers else error < 1e-6
            error = apart(found[node], expected[then])
            assert error == 0 if powers else error < 5e-6  # and what those before it have added
    for tie, original, factor, where in zip(after, before, factors, went, strict=True):
        if where == "modulation":
            assert apart(found[tie.tensors[0]] * factor, expected[original.tensors[0]]) < 1e-6
            assert apart(found[tie.tensors[0]], expected[original.tensors[0]]) > 1
    error = apart(moved(*inputs), traced(*inputs))
    assert error == 0 if powers else error < 1e-5
    assert Counter(went)["modulation"] == MODULATED.get(name, 0)
    assert Counter(went)["quantizer"] > 0


@torch.no_grad()
def test_only_the_rows_of_that_modulation_change(zoo):
    """DiT's linear makes shift, scale and gate of attention, then of the feed-forward: gates keep every bit."""
    graph = assigned(zoo("dit")[1])
    name, width = "transformer_blocks.1.norm1.linear", 32
    divided = torch.zeros(6, dtype=torch.bool)
    for layer, parts in (("attn1.to_q", [0, 1]), ("ff.net.0.proj", [3, 4])):
        before = copy.deepcopy(graph.get_submodule(name))
        tie = next(tie for tie in ties(graph) if tie.name == f"transformer_blocks.1.{layer}")
        factor = factor_for(graph, tie, powers=False)
        assert rescale(graph, tie, factor) == "modulation"
        divided = torch.isin(torch.arange(6), torch.tensor(parts))
        by = torch.where(divided.unsqueeze(1), factor, torch.ones(6, width)).flatten()
        assert torch.equal(graph.get_submodule(name).weight, before.weight / by.unsqueeze(1))
        assert torch.equal(graph.get_submodule(name).bias, before.bias / by)


def keep_the_one(graph, linear, layers, r):
    """The other way to divide by r: no buffer, but a bias of `scale` that becomes (1 + bias) / r - 1."""
    for name in layers:
        module = graph.get_submodule(name)
        module.weight = nn.Parameter((module.weight.float() * r).to(module.weight.dtype))
    module, shift, scale = graph.get_submodule(linear), slice(0, 32), slice(32, 64)
    weight, bias = module.weight.detach().float(), module.bias.detach().float()
    weight[: scale.stop] /= r
    bias[shift], bias[scale] = bias[shift] / r, (1 + bias[scale]) / r - 1
    module.weight = nn.Parameter(weight.to(module.weight.dtype))
    module.bias = nn.Parameter(bias.to(module.weight.dtype))


@torch.no_grad()
@pytest.mark.parametrize(("name", "attention"), [("dit", "attn1"), ("sd3", "attn")])
def test_bf16_keeps_its_precision(zoo, name, attention):
    """At r = 100 q, k and v are as near to fp32's as before, within a fifth; with the 1 kept, ten times further."""
    model, traced = zoo(name, torch.bfloat16)
    original, exact = zoo(name)
    layers = tuple(f"transformer_blocks.0.{attention}.to_{part}" for part in "qkv")
    folded, kept = assigned(traced), assigned(traced)
    tie = next(tie for tie in ties(folded) if tie.layers == layers)
    assert rescale(folded, tie, torch.full((32,), 100.0)) == "modulation"
    keep_the_one(kept, "transformer_blocks.0.norm1.linear", layers, 100.0)
    inputs = model.example(8, seed=1)

    def outputs(graph, *given):
        nodes = [node for node in graph.graph.nodes if node.target in layers]
        return torch.stack([value.float() for value in run_recording(graph, nodes, given).values()])

    expected = outputs(exact, *original.example(8, seed=1))
    plain, new, old = (
        float((outputs(graph, *inputs) - expected).norm() / expected.norm()) for graph in (traced, folded, kept)
    )
    assert new < 1.2 * plain
    assert old > 10 * new


@attrs.frozen(kw_only=True)
class Given(Analysis[Samples]):
    """Six rows of a tiny model's inputs."""

    name: ClassVar[str] = "given"
    of: ClassVar[Literal["reference", "graph"]] = "reference"
    model: str

    def compute(self, graph, ctx):
        model = tiny.make(self.model)
        six, five = model.example(6), model.example(5)
        fixed = tuple(i for i, (a, b) in enumerate(zip(six, five, strict=True)) if a.shape == b.shape)
        return Samples(inputs=six, unbatched=fixed)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in tiny.NAMES if name != "vit"])  # which knows no timestep
@pytest.mark.parametrize("powers", [True, False], ids=["powers of two", "any"])
def test_tcr_leaves_every_model_as_it_was(zoo, context, name, powers):
    """By factors it has measured: powers of two change no bit, any less than 1e-5; realised, no `rescale` is left."""
    model, traced = zoo(name)
    ctx = attrs.evolve(context, reference=traced, calibration=Given(model=name), analyses=Analyses())
    passes = [Assign(weight="int4 channel", attention="float"), Tcr(search=False, power_of_two=powers)]
    run = PassManager(passes).run(copy.deepcopy(traced), ctx)
    assert sum(run.records[1].notes["into"].values()) > 0
    inputs = model.example(3, seed=1)
    if powers:
        assert torch.equal(run.graph(*inputs), traced(*inputs))
    else:
        assert apart(run.graph(*inputs), traced(*inputs)) < 1e-5
    realised = PassManager([Simulate(weight=AbsMax(), input=AbsMax())]).run(run.graph, ctx).graph
    assert not [node for node in realised.graph.nodes if node.target is reference.rescale]


@torch.no_grad()
@pytest.mark.parametrize("step", [Smooth(), RepQ(), Tcr(search=False)], ids=lambda step: step.name)
def test_a_realised_model_and_its_artifact(zoo, context, tmp_path, step):
    """The report says where factors went; no `rescale` is left; saved, loaded and saved again the bytes are equal."""
    model, traced = zoo("dit")
    ctx = attrs.evolve(context, reference=traced, calibration=Given(model="dit"), analyses=Analyses())
    passes = [Assign(weight="int8 channel", input="int8 tensor", attention="float"), step, Simulate()]
    run = PassManager(passes).run(copy.deepcopy(traced), ctx)
    into = run.records[1].notes["into"]
    assert into["modulation"] == MODULATED["dit"]
    assert not [node for node in run.graph.graph.nodes if node.target is reference.rescale]
    inputs = model.example(6)
    assert apart(run.graph(*inputs), traced(*inputs)) < 0.05
    folders = tmp_path / "first", tmp_path / "second"
    save(Artifact(graph=run.graph), folders[0], context.catalog)
    loaded = load_artifact(folders[0], context.catalog)
    save(loaded, folders[1], context.catalog)
    assert torch.equal(loaded.graph(*inputs), run.graph(*inputs))
    for file in ("model.safetensors", "qpass.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
