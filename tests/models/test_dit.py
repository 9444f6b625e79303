"""DiT against an independent implementation (diffusers'), its layout, and its export."""

from __future__ import annotations

import re

import attrs
import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from qpass_models.dit import DiT, position_embedding, timestep_embedding
from qpass_models.dit_config import SIZES, DiTConfig
from timm.layers import set_fused_attn
from torch import Tensor
from torch.export import Dim, export

from qpass.errors import ModelError

TINY = DiTConfig(depth=2, width=32, heads=4, patch_size=2, input_size=8, num_classes=10)

KEYS_OF_DEPTH_2 = """
pos_embed
x_embedder.proj.weight x_embedder.proj.bias
t_embedder.mlp.0.weight t_embedder.mlp.0.bias
t_embedder.mlp.2.weight t_embedder.mlp.2.bias
y_embedder.embedding_table.weight
blocks.0.attn.qkv.weight blocks.0.attn.qkv.bias
blocks.0.attn.proj.weight blocks.0.attn.proj.bias
blocks.0.mlp.fc1.weight blocks.0.mlp.fc1.bias
blocks.0.mlp.fc2.weight blocks.0.mlp.fc2.bias
blocks.0.adaLN_modulation.1.weight blocks.0.adaLN_modulation.1.bias
blocks.1.attn.qkv.weight blocks.1.attn.qkv.bias
blocks.1.attn.proj.weight blocks.1.attn.proj.bias
blocks.1.mlp.fc1.weight blocks.1.mlp.fc1.bias
blocks.1.mlp.fc2.weight blocks.1.mlp.fc2.bias
blocks.1.adaLN_modulation.1.weight blocks.1.adaLN_modulation.1.bias
final_layer.linear.weight final_layer.linear.bias
final_layer.adaLN_modulation.1.weight final_layer.adaLN_modulation.1.bias
"""

TO_DIFFUSERS = {  # outside the blocks; "*" stands for "every block has its own copy"
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "transformer_blocks.*.norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "transformer_blocks.*.norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "transformer_blocks.*.norm1.emb.class_embedder.embedding_table",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
TO_DIFFUSERS_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")


def to_diffusers(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our layout to DiTTransformer2DModel's, which computes its position embedding instead of storing it."""
    theirs = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if name == "pos_embed":
            continue
        if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
            block = f"transformer_blocks.{found[1]}"
            if found[2] == "attn.qkv":
                theirs |= {f"{block}.{n}.{kind}": v for n, v in zip(QKV, value.chunk(3), strict=True)}
            else:
                theirs[f"{block}.{TO_DIFFUSERS_BLOCK[found[2]]}.{kind}"] = value
        else:
            copies = range(depth) if "*" in TO_DIFFUSERS[module] else range(1)
            theirs |= {f"{TO_DIFFUSERS[module].replace('*', str(i))}.{kind}": value for i in copies}
    return theirs


def from_diffusers(theirs: dict[str, Tensor], depth: int, grid: int) -> dict[str, Tensor]:
    """DiTTransformer2DModel's layout to ours; of the embedders' copies, block 0's is taken."""
    ours = {}
    for kind in ("weight", "bias"):
        for name, other in TO_DIFFUSERS.items():
            if (key := f"{other.replace('*', '0')}.{kind}") in theirs:
                ours[f"{name}.{kind}"] = theirs[key]
        for i in range(depth):
            block = f"transformer_blocks.{i}"
            ours[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([theirs[f"{block}.{n}.{kind}"] for n in QKV])
            for name, other in TO_DIFFUSERS_BLOCK.items():
                ours[f"blocks.{i}.{name}.{kind}"] = theirs[f"{block}.{other}.{kind}"]
    width = ours["x_embedder.proj.bias"].numel()
    ours["pos_embed"] = get_2d_sincos_pos_embed(width, grid, base_size=grid).float().unsqueeze(0)
    return ours


def diffusers_twin(config: DiTConfig) -> DiTTransformer2DModel:
    """diffusers' DiT, set to the release's arithmetic where its defaults differ from it."""
    twin = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=config.input_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=1e-6,  # diffusers: 1e-5 in the second norm of each block
    ).eval()
    for block in twin.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # diffusers: 1, so frequencies i/127 instead of i/128
    return twin


def tiny(config: DiTConfig = TINY) -> DiT:
    """Seeded weights, large enough that every path from input to output is felt."""
    torch.manual_seed(0)
    model = DiT(config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def inputs(config: DiTConfig = TINY, batch: int = 5, floating: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, config.in_channels, config.input_size, config.input_size)
    t = torch.rand(batch) * 999 if floating else torch.randint(1000, (batch,))
    return x, t, torch.randint(config.num_classes + 1, (batch,))


CONFIGS = {
    "tiny": TINY,
    "patch-4": attrs.evolve(TINY, patch_size=4),
    "three channels, no sigma": attrs.evolve(TINY, in_channels=3, learn_sigma=False),
    "depth 1, odd grid": attrs.evolve(TINY, depth=1, input_size=10),
}


@pytest.mark.parametrize("floating", [False, True], ids=["int-t", "float-t"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_agrees_with_diffusers(config, floating):
    """The same weights give the same output as an implementation written by others."""
    ours, theirs = tiny(config), diffusers_twin(config)
    theirs.load_state_dict(to_diffusers(ours.state_dict(), config.depth))
    x, t, y = inputs(config, floating=floating)
    output = ours(x, t, y)
    assert output.shape == (5, config.out_channels, config.input_size, config.input_size)
    assert output.std() > 0.1
    torch.testing.assert_close(output, theirs(x, t, y).sample, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_weights_of_diffusers_load_here():
    """Converted to our layout, diffusers' own fresh weights, position embedding included, give its output."""
    theirs, ours = diffusers_twin(TINY), DiT(TINY).eval()
    for block in theirs.transformer_blocks[1:]:  # fresh copies differ; in a real checkpoint they are equal
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    ours.load_state_dict(from_diffusers(theirs.state_dict(), TINY.depth, TINY.grid))
    x, t, y = inputs()
    torch.testing.assert_close(ours(x, t, y), theirs(x, t, y).sample, rtol=1e-5, atol=1e-5)


def test_conversions_are_inverse():
    """There and back again, every tensor is the same."""
    state = tiny().state_dict()
    back = from_diffusers(to_diffusers(state, TINY.depth), TINY.depth, TINY.grid)
    assert back.keys() == state.keys()
    assert all(torch.allclose(back[name], state[name], rtol=0, atol=1e-6) for name in state)


def test_layout_is_the_release():
    """The names are those of the published checkpoints."""
    assert sorted(DiT(TINY).state_dict()) == sorted(KEYS_OF_DEPTH_2.split())


def test_shapes_of_the_published_model():
    """DiT-XL/2 at 256x256 has the 675 million parameters of the paper and its known shapes."""
    with torch.device("meta"):
        model = DiT(SIZES["DiT-XL/2"])
    state = model.state_dict()
    assert round(sum(v.numel() for v in model.parameters() if v.requires_grad) / 1e6) == 675
    assert state["pos_embed"].shape == (1, 256, 1152)
    assert state["y_embedder.embedding_table.weight"].shape == (1001, 1152)
    assert state["final_layer.linear.weight"].shape == (2 * 2 * 8, 1152)
    assert len(SIZES) == 12


def test_time_embedding_is_cosines_then_sines():
    """At t = 100 the k-th angle is 100 / 10000^(k/128)."""
    embedded = timestep_embedding(torch.tensor([100]))[0].double()
    angles = 100 * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    torch.testing.assert_close(embedded, torch.cat([angles.cos(), angles.sin()]), rtol=0, atol=1e-5)


def test_position_embedding_matches_diffusers():
    """Also on a grid of odd size."""
    torch.testing.assert_close(position_embedding(32, 5), get_2d_sincos_pos_embed(32, 5, base_size=5).float())


@torch.no_grad()
def test_integer_and_float_timesteps_are_equal():
    """t = 7 and t = 7.0 are the same time."""
    x, t, y = inputs()
    assert torch.equal(tiny()(x, t, y), tiny()(x, t.float(), y))


@torch.no_grad()
def test_training_mode_changes_nothing():
    """There is no dropout: the null class is chosen by the caller, never by chance."""
    model, example = tiny(), inputs()
    assert torch.equal(model.eval()(*example), model.train()(*example))


@torch.no_grad()
def test_runs_in_bfloat16():
    """The sinusoids stay in fp32, the rest follows the model's dtype."""
    x, t, y = inputs()
    output = tiny().to(torch.bfloat16)(x.bfloat16(), t, y)
    assert output.dtype == torch.bfloat16
    assert (output.float() - tiny()(x, t, y)).std() < 0.05 * output.float().std()


@pytest.mark.parametrize("floating", [False, True], ids=["int-t", "float-t"])
@torch.no_grad()
def test_export_with_dynamic_batch_is_bit_exact(floating):
    """One exported graph serves every batch size, and attention stays one node in it."""
    model = tiny()
    batch = Dim("batch", min=1, max=4096)
    program = export(model, inputs(batch=2, floating=floating), dynamic_shapes=[{0: batch}] * 3, strict=False)
    graph = program.module()
    for size in (1, 2, 5, 70):
        example = inputs(batch=size, floating=floating)
        assert torch.equal(graph(*example), model(*example)), size
    assert sum("scaled_dot_product" in str(node.target) for node in graph.graph.nodes) == TINY.depth


def test_attention_is_fused_whatever_timm_is_told():
    """timm's switch, which TIMM_FUSED_ATTN=0 sets too, would otherwise give another graph."""
    set_fused_attn(False)
    try:
        assert all(block.attn.fused_attn for block in DiT(TINY).blocks)
    finally:
        set_fused_attn(True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 5}, "heads must divide width, got heads 5 and width 32"),
        ({"patch_size": 3}, "patch_size must divide input_size, got patch_size 3 and input_size 8"),
        ({"width": 30, "heads": 2}, "width must be a multiple of 4, got 30"),
    ],
)
def test_impossible_dimensions_are_refused(change, message):
    """Before any weight is made."""
    with pytest.raises(ModelError, match=message):
        attrs.evolve(TINY, **change)
