"""The chain of blocks: a partition, in order, each of whose members runs alone at any batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

import qpass.graph as graph
from qpass.graph.nodes import compute_nodes


class Recorder(Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


@torch.no_grad()
@pytest.mark.parametrize("split", [False, True], ids=["fused", "split"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_block_runs_alone_at_another_batch(zoo, name, split):
    """Cut at batch 2; at batch 5, each block gives from recorded inputs the recorded outputs, bit for bit."""
    model, traced = zoo(name)
    gm = copy.deepcopy(traced)
    if split:
        graph.split_attention(gm)
    recorder = Recorder(gm)
    recorder.run(*model.example(5, seed=5, size=(16, 8) if name in tiny.RESIZABLE else None))
    for block in graph.blocks(gm):
        found = graph.block_module(gm, block)(*(recorder.values[node] for node in block.inputs))
        assert len(found) == len(block.outputs)
        for value, node in zip(found, block.outputs, strict=True):
            assert torch.equal(value, recorder.values[node])


@torch.no_grad()
@pytest.mark.parametrize("fine", [False, True], ids=["blocks", "layers"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_the_chain_is_the_model(zoo, name, fine):
    """Blocks partition the compute nodes in order, and run one after another they give the model's output."""
    model, gm = zoo(name)
    layers = [n for n in gm.graph.nodes if n.op == "call_module"]
    cut = graph.blocks_ending_at(gm, layers) if fine else graph.blocks(gm)
    if fine:
        assert [block.nodes[-1] for block in cut if block.nodes[-1] in layers] == layers
    assert [node for block in cut for node in block.nodes] == compute_nodes(gm.graph)
    assert len({block.name for block in cut}) == len(cut)
    inputs = model.example(3, seed=3)
    live = dict(zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True))
    for block in cut:
        made = graph.block_module(gm, block)(*(live[node] for node in block.inputs))
        live.update(zip(block.outputs, made, strict=True))
    assert torch.equal(live[gm.graph.output_node().args[0]], gm(*inputs))


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("unet", "residual", ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "mid_block.resnets.0"]),
        ("unet", "attention", ["down_blocks.1.attentions.0", "mid_block.attentions.0"]),
        ("unet", "resampling", ["down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0"]),
        ("sdxl", "transformer", ["down_blocks.1.attentions.0.transformer_blocks.0"]),
        ("dit", "transformer", ["transformer_blocks.0", "transformer_blocks.1"]),
        ("pixart", "transformer", ["transformer_blocks.0", "transformer_blocks.1"]),
        ("sd3", "transformer", ["transformer_blocks.0", "transformer_blocks.1"]),
        ("flux", "transformer", ["transformer_blocks.0", "single_transformer_blocks.0"]),
        ("vit", "transformer", ["blocks.0", "blocks.1"]),
    ],
)
def test_blocks_are_found_by_class(zoo, name, kind, found):
    """Blocks bear their module's name and kind, in execution order; attention inside one is no other."""
    names = [block.name for block in graph.blocks(zoo(name)[1]) if block.kind == kind]
    assert [n for n in names if n in found] == found


def test_a_block_shares_its_parameters(zoo):
    """What is trained in a block alone is trained in the model."""
    _, gm = zoo("vit")
    block = next(b for b in graph.blocks(gm) if b.name == "blocks.1")
    alone = graph.block_module(gm, block)
    assert alone.get_parameter("blocks.1.mlp.fc1.weight") is gm.get_parameter("blocks.1.mlp.fc1.weight")
    assert {n for n, _ in alone.named_parameters()} == {
        n for n, _ in gm.named_parameters() if n.startswith("blocks.1.")
    }


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList([Mixer(), Mixer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for mixer in self.mixers:
            x = mixer(x)
        return x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.stages = nn.ModuleList([Stage(), Stage()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.stages[0].mixers[0](x))


def test_unknown_blocks_are_found_by_structure():
    """The innermost repeated list members with a norm and layers; a second call of one is its own block."""
    gm = graph.trace(Net(), (torch.ones(2, 4),))
    for node in gm.graph.nodes:
        if "stack" in node.meta:
            node.meta["stack"] = [list(entry) for entry in node.meta["stack"]]  # as JSON gives it back
    assert [(block.name, block.kind) for block in graph.blocks(gm)] == [
        ("stem", "other"),
        ("stages.0.mixers.0", "transformer"),
        ("stages.0.mixers.1", "transformer"),
        ("stages.1.mixers.0", "transformer"),
        ("stages.1.mixers.1", "transformer"),
        ("stages.0.mixers.0#2", "transformer"),
        ("head", "other"),
    ]
