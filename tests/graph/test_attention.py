"""Splitting attention keeps its numbers and names the parts."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

import qpass.graph as graph
from qpass.errors import TraceError
from qpass.graph.attention import SDPA


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.NAMES)
def test_split_equals_fused(zoo, name):
    """Below 1e-5 of the fused result, at a batch that was not traced; no fused attention is left."""
    model, gm = zoo(name)
    split = copy.deepcopy(gm)
    fused = [n.meta["origin"] for n in gm.graph.nodes if n.target is SDPA]
    assert graph.split_attention(split) == len(fused) > 0
    inputs = model.example(5, seed=5)
    assert relative(split(*inputs), gm(*inputs)) < 1e-5
    found = {n.meta["origin"]: n for n in split.graph.nodes if graph.is_compute(n)}
    assert len(found) == sum(graph.is_compute(n) for n in split.graph.nodes)
    for origin in fused:
        for part in ("qk", "softmax", "pv"):
            assert origin.replace("scaled_dot_product_attention", part) in found
    assert SDPA not in {n.target for n in split.graph.nodes}


def test_only_the_named_ones_are_split(zoo):
    """`only` picks by origin, and a second split finds the rest."""
    _, gm = zoo("vit")
    split = copy.deepcopy(gm)
    assert graph.split_attention(split, only={"blocks.1.attn/scaled_dot_product_attention[0]"}) == 1
    origins = {n.meta["origin"] for n in split.graph.nodes if graph.is_compute(n)}
    assert "blocks.1.attn/qk[0]" in origins
    assert "blocks.0.attn/scaled_dot_product_attention[0]" in origins
    assert graph.split_attention(split) == 1
    assert graph.split_attention(split) == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "dit", "flux"])
def test_split_bf16_is_as_near_to_fp32_as_fused_bf16(zoo, name):
    """Splitting a bf16 graph adds no error that bf16 itself does not have."""
    model, gm = zoo(name, torch.bfloat16)
    exact = copy.deepcopy(model.module).float()
    inputs = model.example(16, seed=1)
    wanted = model.call(exact, *(v.float() if v.dtype is torch.bfloat16 else v for v in inputs))
    split = copy.deepcopy(gm)
    graph.split_attention(split)
    assert relative(split(*inputs), wanted) < 1.1 * relative(gm(*inputs), wanted)


@torch.no_grad()
def test_split_of_a_model_that_writes_in_place():
    """FreeU's in-place slices decompose into views that hold in the fused layout; split, it equals the model."""
    model = tiny.make("ldm")
    model.module.enable_freeu(0.9, 0.2, 1.5, 1.6)
    gm = graph.trace(model.module, model.example(2), call=model.call, dynamic=model.dynamic)
    assert graph.split_attention(gm) > 0
    inputs = model.example(5, seed=5)
    assert relative(gm(*inputs), model.eager(inputs)) < 1e-5


class Viewing(nn.Module):
    """Views the result of attention, whose fused kernel leaves it in the layout of the query."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).view(x.shape)


@torch.no_grad()
def test_a_view_of_fused_attention_holds_once_it_is_split():
    """The fused kernel keeps heads next to each other in memory, its parts do not: the view becomes a reshape."""
    module, x = Viewing(), torch.randn(3, 5, 16)
    gm = graph.trace(module, (x,))
    assert torch.equal(gm(x), module(x))
    assert graph.split_attention(gm) == 1
    assert relative(gm(x), module(x)) < 1e-5


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, *mask, **self.options)


BOOL = torch.rand(3, 1, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
BOOL[1, :, 2] = False  # a row without any key: its result is zero


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, None),
        ({"scale": 0.3}, None),
        ({"is_causal": True}, None),
        ({"enable_gqa": True}, None),
        ({}, BOOL),
        ({}, torch.randn(3, 1, 5, 7)),
        ({}, torch.randn(3, 1, 5, 7).masked_fill(~BOOL, -torch.inf)),
        ({"scale": 2.0, "enable_gqa": True}, BOOL),
    ],
    ids=["plain", "scale", "causal", "gqa", "bool", "float", "float-inf", "all"],
)
def test_every_kind_of_attention(options, mask):
    """Both kinds of mask, rows without a key, scale, causality, shared heads: fused equal, split 1e-5."""
    heads = 2 if options.get("enable_gqa") else 4
    q, k, v = torch.randn(3, 4, 5, 8), torch.randn(3, heads, 7, 8), torch.randn(3, heads, 7, 6)
    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    module = Attention(**options)
    gm = graph.trace(module, inputs)
    wanted = module(*inputs)
    assert torch.equal(gm(*inputs), wanted)
    assert graph.split_attention(gm) == 1
    assert relative(gm(*inputs), wanted) < 1e-5


@torch.no_grad()
def test_products_that_fp16_cannot_hold_do_not_overflow():
    """q k^T up to 130,000 is beyond fp16's 65,504, an eighth of it is not: split, it is near attention in fp32."""
    q = (torch.randn(2, 4, 16, 64, generator=torch.Generator().manual_seed(0)) + 45.0).half()
    assert float((q.float() @ q.float().mT).amax()) > 131_000
    gm = graph.trace(Attention(), (q, q, q))
    assert graph.split_attention(gm) == 1
    assert relative(gm(q, q, q), Attention()(q.float(), q.float(), q.float())) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_that_is_a_power_of_two_changes_no_bit(dtype):
    """With heads 16 wide the scale is 1/4: scaling q gives the same bits as scaling q k^T."""
    q, k, v = (torch.randn(3, 4, 5, 16).to(dtype) for _ in range(3))
    gm = graph.trace(Attention(), (q, k, v))
    graph.split_attention(gm)
    assert torch.equal(gm(q, k, v), ((q @ k.mT) * 0.25).softmax(-1) @ v)


def test_dropout_in_attention_is_refused():
    """Attention that drops weights even in eval mode has no split form."""
    q = torch.randn(3, 4, 5, 8)
    gm = graph.trace(Attention(dropout_p=0.1), (q, q, q))
    with pytest.raises(TraceError, match="dropout"):
        graph.split_attention(gm)
