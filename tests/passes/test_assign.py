"""Which nodes get which spec."""

from __future__ import annotations

import copy
from typing import ClassVar

import attrs
import pytest
import torch
from qpass_passes.assign import Assign, Rule, edges

from qpass.errors import PreconditionError
from qpass.manager import PassManager
from qpass.slots import slots, spec_of
from qpass.spec import parse_spec


def specs(graph):
    return {n.meta["origin"]: spec_of(n) for n in graph.graph.nodes if spec_of(n) is not None}


def assigned(context, **options):
    graph = copy.deepcopy(context.reference)
    result = Assign(**options).run(graph, context)
    return result, specs(result.graph)


def test_w4a6_as_the_literature_means_it(context):
    """Layers at 4/6, attention's four inputs at 6, first, last and time embedding at 8/8, nothing left over."""
    result, found = assigned(context, weight="int4 channel", input="int6 tensor")
    eight, six = parse_spec("int8 tensor", symmetric=False), parse_spec("int6 tensor", symmetric=False)
    edge = {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    products = {name for name in found if "/qk[" in name or "/pv[" in name}
    modules = {n for n, m in context.reference.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert found.keys() == modules | products
    assert len(products) == 2 * result.notes["attention split"] > 0
    for name, spec in found.items():
        if name in products:
            assert spec.inputs == (six, six)
            assert spec.weight is None
        elif name in edge:
            assert (spec.weight.bits, spec.inputs) == (8, (eight,))
        else:
            assert (spec.weight.bits, spec.inputs) == (4, (six,))
    assert result.notes["floating point"] == {}


def test_the_graph_computes_the_same(context):
    """Specs and split attention leave the numbers alone (1e-5 relative)."""
    result, _ = assigned(context)
    inputs = context.model.example(3)
    ours, theirs = result.graph(*inputs), context.reference(*inputs)
    assert ((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_edges_are_found_in_the_graph_of_a_dit(catalog):
    """A DiT's first layer is its patch embedding, its last proj_out_2, and each block's time MLP is an edge."""
    from qpass_models.zoo import Cifar10DiT

    from qpass.graph import trace

    adapter = Cifar10DiT()
    example = tuple(part.to("meta") for part in adapter.example())
    graph = trace(adapter.skeleton(), example, call=adapter.call, dynamic=adapter.dynamic())
    names = {n.meta["origin"].partition("#")[0] for n in edges(graph)}
    mlp = "norm1.emb.timestep_embedder.linear_"
    expected = {f"transformer_blocks.{i}.{mlp}{k}" for i in range(8) for k in (1, 2)}
    assert names == {"pos_embed.proj", "proj_out_2"} | expected


def test_the_last_rule_that_matches_holds(context):
    """Rules and `keep` are globs over node names; a kept node gets no spec and is listed as floating point."""
    result, found = assigned(
        context,
        keep=("conv_out",),
        rules=(
            Rule(match="*resnets*", weight="int4 channel", input="int8 tensor"),
            Rule(match="*conv_shortcut", weight="int8 channel"),
        ),
    )
    assert "conv_out" not in found
    assert result.notes["floating point"]["Conv2d"][-1] == "conv_out"
    shortcut = next(name for name in found if name.endswith("conv_shortcut"))
    assert (found[shortcut].weight.bits, found[shortcut].inputs) == (8, (None,))
    assert found["down_blocks.0.resnets.0.conv1"].weight.bits == 4


def test_linear_layers_may_have_inputs_of_their_own(context):
    """Convolutions, attention's products, edges and what a rule names keep theirs."""
    token = parse_spec("int4 token dynamic", symmetric=False)
    _, plain = assigned(context, rules=(Rule(match="*.to_v", input="int6 tensor"),))
    _, found = assigned(
        context, linear_input="int4 token dynamic", rules=(Rule(match="*.to_v", input="int6 tensor"),)
    )
    changed = {name for name, spec in found.items() if spec != plain[name]}
    linear = {n for n, m in context.reference.named_modules() if isinstance(m, torch.nn.Linear)}
    assert changed == {n for n in linear if not n.endswith(".to_v") and not n.startswith("time_embedding")}
    assert all(found[name].inputs == (token,) for name in changed)
    assert any(name.endswith(".to_q") for name in changed)
    assert Assign(linear_input="float").linear_input == "float"


def test_attention_in_floating_point_stays_fused(context):
    """attention = "float" leaves the fused call in the graph, and says so."""
    result, found = assigned(context, attention="float")
    assert not any("/qk[" in name for name in found)
    assert any("scaled_dot_product_attention" in name for name in result.notes["floating point"]["attention"])


def test_products_that_are_no_layers_are_listed(context):
    """A weight computed in each call, a transposed convolution, einsums: no spec, and each is named.

    An einsum that only permutes or multiplies without a sum is no product.
    """
    from qpass.graph import trace

    class Aside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 8))
            self.up = torch.nn.ConvTranspose1d(8, 8, 4, 2, 1)

        def forward(self, x, t):
            h = self.normed(self.first(x))
            h = torch.einsum("bts,bsc->btc", torch.einsum("btc,bsc->bts", h, h).softmax(-1), h)
            h = torch.einsum("btc,b->bct", h, t)
            return self.last(torch.einsum("bct->btc", self.up(h)))

    graph = trace(Aside(), (torch.randn(2, 5, 8), torch.ones(2)))
    result = Assign().run(graph, context)
    assert specs(result.graph).keys() == {"first", "last"}
    assert result.notes["floating point"] == {
        "linear": ["normed/linear[0]"],
        "einsum": ["/einsum[0]", "/einsum[1]"],
        "conv_transpose1d": ["up/conv_transpose1d[0]"],
    }


def test_a_glob_without_a_match_is_an_error(context):
    """The error names the glob and the nearest node."""
    with pytest.raises(PreconditionError, match=r"'conv_inn' matches no node, did you mean 'conv_in'"):
        Assign(keep=("conv_inn",)).requires(context.reference, context)


def test_calls_of_one_module_share_its_weight(catalog, context):
    """A module called twice has one weight slot and an input slot for each call."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x, t):
            return self.c(self.b(torch.relu(self.b(self.a(x)))))

    from qpass.graph import trace

    graph = trace(Twice(), (torch.randn(2, 4), torch.zeros(2)))
    found = list(slots(Assign().run(graph, context).graph))
    homes = [slot.home for slot in found if slot.home.startswith("b.")]
    assert homes == ["b.weight_q", "b.input0_q", "b.call2.input0_q"]


def test_attention_is_never_by_channel(context):
    """Inputs by channel leave attention per tensor, as its last axis may be tokens; asked for it is refused."""
    _, found = assigned(context, input="int8 channel")
    products = [spec for name, spec in found.items() if "/qk[" in name or "/pv[" in name]
    assert {str(s) for spec in products for s in spec.inputs} == {"int8 tensor asym"}
    with pytest.raises(ValueError, match="must be by tensor or token"):
        Assign(attention="int8 channel")


def test_same_is_a_word_for_attention_alone():
    """ "same" as the quantizer of inputs means nothing and is refused at once."""
    with pytest.raises(ValueError, match="'same' is not a quantizer"):
        Assign(input="same")


def test_softmax_outputs_may_have_a_spec_of_their_own(context):
    """Only the second product's first operand takes it; a rule has its own; alone it still splits attention."""
    log, six = (parse_spec(text, symmetric=False) for text in ("log2:4 tensor", "int6 tensor"))
    _, found = assigned(context, input="int6 tensor", softmax="log2:4 tensor")
    products = {name: spec.inputs for name, spec in found.items() if "/qk[" in name or "/pv[" in name}
    assert products
    assert all(inputs == ((log, six) if "/pv[" in name else (six, six)) for name, inputs in products.items())
    _, found = assigned(context, attention="float", softmax="log2:4 tensor")
    assert all(found[name].inputs == (log, None) for name in products if "/pv[" in name)
    assert not any("/qk[" in name for name in found)
    rule = Rule(match="*/pv*", input="int6 tensor", softmax="float")
    _, found = assigned(context, softmax="log2:4 tensor", rules=(rule,))
    assert all(found[name].inputs == (None, six) for name in products if "/pv[" in name)


def test_softmax_is_found_behind_casts_and_reshapes():
    """Attention written out, with its weights cast and reshaped before the product, and the operands swapped."""
    from qpass.graph import trace
    from qpass.graph.attention import after_softmax

    class Written(torch.nn.Module):
        def forward(self, x, t):
            weights = (
                (x @ x.transpose(-1, -2)).float().softmax(-1).type(x.dtype).reshape(-1, x.shape[1], x.shape[1])
            )
            return torch.bmm(x.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2) + t[:, None, None]

    graph = trace(Written(), (torch.randn(2, 5, 6), torch.ones(2)))
    found = [
        [after_softmax(arg) for arg in node.args]
        for node in graph.graph.nodes
        if node.target in (torch.ops.aten.matmul.default, torch.ops.aten.bmm.default)
    ]
    assert found == [[False, False], [False, True]]


@torch.no_grad()
@pytest.mark.parametrize("form", ["fused", "written", "the other way round"])
@pytest.mark.parametrize("dynamic", [" dynamic", ""])
def test_each_token_of_keys_and_values_has_its_scale(context, form, dynamic):
    """By token q, k, v and softmax outputs are rounded row by row, k before it is transposed; worked out in fp64."""
    from qpass_passes.quantizers.absmax import AbsMax
    from qpass_passes.simulate import Simulate

    from qpass.activations import Samples
    from qpass.analysis import Analysis
    from qpass.graph import trace

    class Attending(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

        def forward(self, x, t):
            q, k, v = self.first(x + t[:, None, None]).chunk(3, -1)
            if form == "fused":
                h = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            elif form == "written":
                h = (q / 4 @ k.transpose(-2, -1)).softmax(-1) @ v
            else:
                weights = torch.bmm(q / 4, k.permute(0, 2, 1)).softmax(-1)
                h = torch.bmm(v.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2)
            return self.last(h)

    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    x = (x * torch.logspace(-1, 1, 5)[:, None]).expand(2, -1, -1).contiguous()  # tokens of very different size

    @attrs.frozen(kw_only=True)
    class Given(Analysis):
        name: ClassVar[str] = "given"

        def compute(self, graph, ctx):
            return Samples(inputs=(x, torch.ones(2)))

    def rounded(values, seen=None):
        seen = values if seen is None else seen
        low, high = seen.amin(-1, True).clamp(max=0), seen.amax(-1, True).clamp(min=0)
        scale = (high - low) / 15
        zero = (-low / scale).round()
        return (((values / scale).round() + zero).clamp(0, 15) - zero) * scale

    model = Attending()
    graph = trace(model, (x, torch.ones(2)))
    context = attrs.evolve(context, reference=graph, calibration=Given())
    assign = Assign(
        weight="float", input="float", edge_weight="float", edge_input="float", attention=f"int4 token{dynamic}"
    )
    done = PassManager((assign, Simulate(input=AbsMax()))).run(copy.deepcopy(graph), context).graph
    q, k, v = model.first(x + 1).double().chunk(3, -1)
    weights = (rounded(q / 4) @ rounded(k).transpose(-2, -1)).softmax(-1)
    # a scale that is fitted before is that of weights from products which were not rounded
    seen = weights if dynamic else (q / 4 @ k.transpose(-2, -1)).softmax(-1)
    expected = model.last.double()(rounded(weights, seen) @ rounded(v))
    assert (done(x, torch.ones(2)).double() - expected).norm() / expected.norm() < 1e-5
