"""Cost, held to counts by hand and to PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from qpass_evaluators import Cost
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils.flop_counter import FlopCounterMode

from qpass.evaluator import Subject
from qpass.graph import trace
from qpass.products import count
from qpass.spec import NodeSpec, QuantSpec


class TwoLayers(nn.Module):
    """A strided grouped convolution and a linear: countable in one's head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(self.conv(x).flatten(2).transpose(1, 2))
        return output


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return torch.matmul(torch.matmul(q, k.transpose(-1, -2)).softmax(-1), v)


class Positional(nn.Module):
    """A diffusers model called as denoise(x, t, *cond)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        extra = {} if labels is None else {"class_labels": labels}
        output: Tensor = self.model(x, timestep=t, return_dict=False, **extra)[0]
        return output


CONV_MACS = 6 * 4 * 4 * (2 * 3 * 3)
FC_MACS = 16 * 10 * 6


def two_layers(**specs: NodeSpec) -> GraphModule:
    graph = symbolic_trace(TwoLayers().eval())
    for node in graph.graph.nodes:
        if node.op == "call_module":
            node.meta["origin"] = node.target
        if node.target in specs:
            node.meta["qpass"] = specs[node.target]
    return graph


def test_two_layers_by_hand(spec: Callable[..., NodeSpec]) -> None:
    """MACs are outputs times terms; BOPs multiply them by the bits of weight and input, fp32 counting 32."""
    graph = two_layers(conv=spec(4, 8), fc=spec((2, 4) * 5, None))
    found = count(graph, (torch.randn(1, 4, 8, 8),))
    assert {name: [p.macs for p in parts] for name, parts in found.items()} == {
        "conv": [CONV_MACS],
        "fc": [FC_MACS],
    }
    assert found["conv"][0].bops == CONV_MACS * 4 * 8
    assert found["fc"][0].bops == FC_MACS * 3 * 32


def test_half_precision_counts_sixteen_bits() -> None:
    """A bf16 model without specs costs 16 x 16 bit operations for each MAC."""
    found = count(two_layers().to(torch.bfloat16), (torch.randn(1, 4, 8, 8, dtype=torch.bfloat16),))
    assert sum(p.bops for parts in found.values() for p in parts) == (CONV_MACS + FC_MACS) * 256


@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_both_products(fused: bool) -> None:
    """Queries times keys and weights times values, whether in one node or in two."""
    graph = symbolic_trace(Attention(fused))
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 4)
    parts = [p for products in count(graph, (q, k, v)).values() for p in products]
    assert [p.macs for p in parts] == [2 * 3 * 5 * 7 * 8, 2 * 3 * 5 * 7 * 4]


class Products(nn.Module):
    """A product of matrices in each way that torch has."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        weights = torch.baddbmm(torch.zeros(1, 1, 1), x, x.transpose(1, 2)).softmax(-1)
        mixed = torch.einsum("bij, bjd -> bid", weights, x)
        rows = torch.einsum("...id,...jd->...ij", mixed, x[0])
        scaled = torch.einsum("bij,b->bij", rows, t.float())  # multiplies, and sums nothing
        return torch.addmm(scaled[0], scaled[1], rows[0]) + torch.addbmm(rows[0], rows, scaled)


def test_every_product_of_matrices_counts() -> None:
    """Added ones and einsum's too: half of the FLOPs that PyTorch counts, which leaves out the last one."""
    x, t = torch.randn(2, 5, 8), torch.tensor([1, 2])
    with FlopCounterMode(display=False) as flops:
        Products()(x, t)
    for graph in (symbolic_trace(Products()), trace(Products(), (x, t))):
        found = count(graph, (x, t))
        assert [p.macs for parts in found.values() for p in parts] == [400, 400, 400, 125, 250]
        assert flops.get_total_flops() == 2 * (400 + 400 + 400 + 125)


def test_a_text_counts_with_all_its_tokens(context: Any) -> None:
    """Cross-attention of 8 x 8 latents with CLIP's 77 tokens, counted by hand; an example's 7 are for tracing alone."""
    from qpass_models.in_memory import InMemory

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D",), mid_block_type=None, up_block_types=("UpBlock2D",),
        attention_head_dim=2,
    )  # fmt: skip
    adapter = InMemory(module=unet)
    graph = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
    seen = Cost().observe(Subject(role="original", graph=graph), context(graph, model=adapter))
    assert seen.protocol["shapes"][2] == [1, 77, 24]
    short = sum(p.macs for parts in count(graph, adapter.example(1)).values() for p in parts)
    # keys and values are 8 of 24 features each; queries of 64 places meet them in q k^T and in the product with v
    assert seen.numbers["macs"] - short == (77 - 7) * (2 * 24 * 8 + 2 * 64 * 8)


def test_an_einsum_of_three_tensors_is_named(context: Any, mute: Any) -> None:
    """What it takes depends on the order, so it is left out, and the protocol says so."""

    class Three(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.einsum("bchw,bcwv,b->bchv", x, x, t.float())

    graph = symbolic_trace(Three())
    seen = Cost().observe(Subject(role="original", graph=graph), context(graph, model=mute))
    assert seen.numbers == {"macs": 0, "bops": 0}
    assert seen.protocol["not counted"] == ["einsum"]


def test_matmul_multiplies_the_bits_of_both_inputs() -> None:
    """An attention's products run at the bits of queries and keys, and of weights and values."""
    graph = symbolic_trace(Attention(False))
    first, second = (n for n in graph.graph.nodes if n.target is torch.matmul)
    first.meta["qpass"] = NodeSpec(inputs=(QuantSpec(bits=8), QuantSpec(bits=6)))
    second.meta["qpass"] = NodeSpec(inputs=(QuantSpec(format="log2", bits=4), QuantSpec(bits=8)))
    found = count(graph, (torch.randn(1, 1, 5, 8),) * 3)
    assert [p.bops for parts in found.values() for p in parts] == [200 * 48, 200 * 32]


def test_an_unknown_kernel_does_the_work_it_stands_for(spec: Callable[..., NodeSpec]) -> None:
    """A module of a backend is counted as the teacher's node of that origin; one that has none is named."""

    class Kernel(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.inner(x)
            return output

    example = (torch.randn(1, 4, 8, 8),)
    teacher, graph = two_layers(), two_layers(conv=spec(4, 8), fc=spec(8, 8))
    graph.conv, graph.fc = Kernel(graph.conv), Kernel(graph.fc)
    found = count(graph, example, count(teacher, example))
    assert found["conv"][0].bops == CONV_MACS * 4 * 8
    assert found["fc"][0].bops == FC_MACS * 64
    assert count(graph, example) == {"conv": (), "fc": ()}


def test_metrics_of_both_models(teacher: GraphModule, context: Any, specify: Any, spec: Any) -> None:
    """MACs are reported once, BOPs of both models; the series starts with the dearest node."""
    graph = specify(teacher, first=spec(4, 8), last=spec(8, 8))
    ctx, cost = context(teacher), Cost()
    original = cost.observe(Subject(role="original", graph=teacher), ctx)
    candidate = cost.observe(Subject(role="quantized", graph=graph), ctx)
    found = {(m.subject, m.name): m.value for m in cost.score(candidate, original)}
    layer = 144 * 216
    assert found == {
        ("original", "macs"): 2 * layer + 8,
        ("original", "bops"): (2 * layer + 8) * 1024,
        ("quantized", "bops"): layer * 32 + layer * 64 + 8 * 1024,
    }
    assert candidate.series["bops by node"].x == ("last", "first", "time")
    assert "not counted" not in candidate.protocol


def unet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return Positional(model.eval()), (torch.randn(2, 3, 8, 8), torch.tensor([3, 700]))


def dit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    return Positional(model.eval()), (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 2]))


@pytest.mark.parametrize("make", [unet, dit])
def test_macs_are_half_of_the_flops_pytorch_counts(
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]],
) -> None:
    """On an exported UNet and DiT, counted at batch 1: PyTorch's counter takes two FLOPs for each MAC."""
    model, inputs = make()
    batch = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        model, inputs, strict=False, dynamic_shapes=tuple({0: batch} for _ in inputs)
    ).module(check_guards=False)
    single = tuple(x[:1] for x in inputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*single)
    assert (
        sum(p.macs for parts in count(exported, single).values() for p in parts) * 2 == counter.get_total_flops()
    )
