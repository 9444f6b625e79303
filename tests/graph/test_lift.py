"""Layers become modules under their own names."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

import qpass.graph as graph

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_layer_the_model_calls_is_a_module_call(zoo, name):
    """Hooks on the model count the calls of each layer; the graph has just those, on modules of its kind."""
    model, gm = zoo(name)
    calls: Counter[str] = Counter()
    kinds: dict[str, type[nn.Module]] = {}
    hooks = []
    for dotted, module in model.module.named_modules():
        if isinstance(module, LAYERS):
            kinds[dotted] = next(kind for kind in LAYERS if isinstance(module, kind))
            hooks.append(module.register_forward_hook(lambda *_, dotted=dotted: calls.update([dotted])))
    model.eager(model.example(2))
    for hook in hooks:
        hook.remove()
    assert Counter(node.target for node in gm.graph.find_nodes(op="call_module")) == calls
    for dotted in calls:
        assert type(gm.get_submodule(dotted)) is kinds[dotted]
        assert torch.equal(gm.get_submodule(dotted).weight, model.module.get_submodule(dotted).weight)


def test_a_module_called_twice_stays_one_module(zoo):
    """DiT calls a timestep embedder in its block and at the end: one module, two call nodes, two origins."""
    _, gm = zoo("dit")
    name = "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"
    nodes = [n for n in gm.graph.find_nodes(op="call_module") if n.target == name]
    assert [n.meta["origin"] for n in nodes] == [name, f"{name}#2"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.table(t) + x))


@torch.no_grad()
def test_a_tied_weight_is_two_modules_on_one_parameter():
    """Each use has its own module's name, and the weight is still tied."""
    module, inputs = Tied(), (torch.randn(3, 4), torch.tensor([1, 2, 9]))
    gm = graph.trace(module, inputs)
    assert torch.equal(gm(*inputs), module(*inputs))
    assert type(gm.table) is nn.Embedding
    assert type(gm.head) is nn.Linear
    assert gm.head.weight is gm.table.weight


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(3, 4, 3, stride=2, dilation=2)
        self.same = nn.Conv2d(3, 4, 3, padding="same")
        self.around = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", groups=2)
        self.cube = nn.Conv3d(1, 2, 2, padding=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.loose = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.around(self.same(x))
        tokens = h.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = F.linear(tokens, self.loose) + F.linear(tokens, self.loose.exp())
        return tokens.sum((1, 2)) + self.cube(x[:, :1, None]).sum((1, 2, 3, 4)) + self.line(x[:, :, 0]).sum((1, 2))


@torch.no_grad()
def test_all_kinds_of_convolution_and_loose_parameters():
    """Strides, string paddings, padding modes, groups, packed weights: same numbers, readable names."""
    module = Layers().eval()
    gm = graph.trace(module, (torch.randn(2, 3, 8, 8),))
    names = {n.target for n in gm.graph.find_nodes(op="call_module")}
    assert names == {"line", "same", "around", "cube", "attention.in_proj", "attention.out_proj"}
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(gm(x), module(x), rtol=1e-6, atol=1e-5)


class Casting(nn.Linear):
    """Casts its weight to the dtype of what it is given, as layers of mixed precision do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.float()) + F.linear(x, self.weight.type_as(x))


@torch.no_grad()
def test_a_cast_to_the_dtype_it_has_hides_no_parameter():
    """In fp32 such casts do nothing: two calls of one parameter are modules unless their biases differ."""
    module, x = nn.Sequential(nn.Linear(8, 8), Casting(8, 4)), torch.randn(3, 8)
    gm = graph.trace(module, (x,))
    assert [n.target for n in gm.graph.find_nodes(op="call_module")] == ["0", "1"]
    assert gm.get_submodule("1").bias is not None
    assert torch.equal(gm(x), module(x))


@torch.no_grad()
def test_a_cast_to_another_dtype_is_arithmetic():
    """A weight in bf16 that is cast to fp32 for an input in fp32 is no module's: the cast stays in the graph."""
    module, x = Casting(8, 4).bfloat16(), torch.randn(3, 8)
    gm = graph.trace(module, (x,))
    assert not list(gm.graph.find_nodes(op="call_module"))
    assert torch.equal(gm(x), module(x))


class Holding(nn.Linear):
    """A linear layer that holds a buffer, a parameter and two layers of its own, as LoRA does, and adds them up."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("gain", torch.full((8,), 2.0))
        self.shift = nn.Parameter(torch.randn(8))
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x)) + F.linear(x, self.weight, self.bias) * self.gain + self.shift


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Holding()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.inner(x).relu())


@torch.no_grad()
def test_a_lifted_layer_keeps_all_that_it_holds():
    """Buffers, parameters and child modules beside the weight; called twice it is still one module."""
    module, x = Twice(), torch.randn(3, 8)
    gm = graph.trace(module, (x,))
    calls = Counter(n.target for n in gm.graph.find_nodes(op="call_module"))
    assert calls == {"inner": 2, "inner.down": 2, "inner.up": 2}
    assert gm.state_dict().keys() == module.state_dict().keys()
    assert torch.equal(gm(x), module(x))


class Late(nn.Linear):
    """Adds its bias by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight) + self.bias


@torch.no_grad()
def test_a_bias_that_is_added_elsewhere_is_not_lost():
    """The module would have none, and what adds it would find nothing: such a call stays as it is."""
    module, x = Late(8, 8), torch.randn(3, 8)
    gm = graph.trace(nn.Sequential(module), (x,))
    assert not list(gm.graph.find_nodes(op="call_module"))
    assert torch.equal(gm(x), module(x))


def test_random_state_is_untouched():
    """Tracing draws no random number: a seeded run is the same with and without it."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(1, 1, 1))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    graph.trace(module, (torch.ones(2, 1, 4),))
    assert torch.equal(torch.rand(1), expected)
