"""The traced graph is the model: same numbers at every batch, size, dtype and kind of timestep."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from qpass_models import signatures
from torch import nn

import qpass.graph as graph
from qpass.errors import TraceError

DIFFUSERS = tuple(tiny.CONFIGS)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def digest(module: nn.Module) -> dict[str, str]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for name, t in tensors}


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.NAMES)
def test_equals_the_model_at_every_batch_and_size(zoo, name):
    """Difference 0 up to batch 5; below 1e-5 past batch 63, where diffusers changes memory layout."""
    model, gm = zoo(name)
    for size in (8, (16, 8)) if name in tiny.RESIZABLE else (None,):
        for batch in (1, 2, 5):
            inputs = model.example(batch, seed=batch, size=size)
            assert torch.equal(gm(*inputs), model.eager(inputs))
        inputs = model.example(70, seed=70, size=size)
        assert relative(gm(*inputs), model.eager(inputs)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["ldm", "sdxl", "pixart", "pixart-sizes", "sd3", "flux"])
def test_takes_texts_of_every_length(zoo, name):
    """A graph traced with 7 tokens of text equals the model on 1, 5 and 77."""
    model, gm = zoo(name)
    keys = model.call.args[0].inputs
    for length in (1, 5, 77):
        inputs = list(model.example(3))
        for place, key in enumerate(keys):
            if key == "encoder_hidden_states":
                inputs[place] = torch.randn(3, length, inputs[place].shape[2])
            elif key == "encoder_attention_mask":
                inputs[place] = torch.ones(3, length)
            elif key == "txt_ids":
                inputs[place] = torch.zeros(length, 3)
        assert torch.equal(gm(*inputs), model.eager(tuple(inputs)))


@torch.no_grad()
@pytest.mark.parametrize("batch", [63, 64])
def test_has_no_edge_where_export_sees_one(zoo, batch):
    """Export believes a UNet's batch ends at 63; the graph does not."""
    model, gm = zoo("unet")
    inputs = model.example(batch)
    assert relative(gm(*inputs), model.eager(inputs)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.NAMES)
def test_bf16_equals_the_bf16_model(zoo, name):
    """A bf16 model's graph has difference 0 to it: its fp32 parts (the sinusoids) are still fp32."""
    model, gm = zoo(name, torch.bfloat16)
    inputs = model.example(3, seed=3)
    assert torch.equal(gm(*inputs), model.eager(inputs))


@torch.no_grad()
@pytest.mark.parametrize("name", DIFFUSERS)
def test_takes_integer_and_float_timesteps(zoo, name):
    """Whichever kind of t it was traced with, it takes both, as the model does."""
    model, gm = zoo(name)
    x, _, *rest = model.example(3)
    steps = torch.tensor([0, 1, 1]) if name == "flux" else torch.tensor([999, 0, 412])
    for t in (steps, steps.float()):
        assert torch.equal(gm(x, t, *rest), model.eager((x, t, *rest)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "dit", "pixart"])
def test_traced_with_a_float_timestep_takes_fractions(name):
    """Traced with float t, fractional and integer t are both right."""
    model = tiny.make(name)
    x, t, *rest = model.example(2)
    gm = graph.trace(model.module, (x, t.float(), *rest), call=model.call, dynamic=model.dynamic)
    for steps in (torch.tensor([17.25, 980.5]), torch.tensor([17, 980])):
        assert torch.equal(gm(x, steps, *rest), model.eager((x, steps, *rest)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "vit"])
def test_leaves_the_model_alone(name):
    """Every weight of the model keeps its bytes, even when the graph's weights are overwritten."""
    model = tiny.make(name)
    model.module.train()
    before, forward = digest(model.module), model.module.forward
    gm = graph.trace(model.module, model.example(2), call=model.call, dynamic=model.dynamic)
    ours = {p.data_ptr() for p in (*gm.parameters(), *gm.buffers())}
    theirs = {p.data_ptr() for p in (*model.module.parameters(), *model.module.buffers())}
    assert not ours & theirs
    for parameter in gm.parameters():
        parameter.zero_()
    assert digest(model.module) == before
    assert model.module.training
    assert model.module.forward == forward
    assert all(p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize("name", tiny.NAMES)
def test_is_plain_and_self_contained(zoo, name):
    """Weights have the model's own names; no gradient, check, baked device or other meta is left."""
    model, gm = zoo(name)
    own = {n for n, _ in (*model.module.named_parameters(), *model.module.named_buffers())}
    assert set(gm.state_dict()) <= own
    assert not gm.training
    assert not any(p.requires_grad for p in gm.parameters())
    for node in gm.graph.nodes:
        assert set(node.meta) == ({"origin", "stack"} if graph.is_compute(node) else set())
        assert "assert" not in str(node.target)
        assert "dropout" not in str(node.target)
        if node.op == "get_attr":
            assert node.target in gm.state_dict()
        if node.op == "call_function":
            assert not any(isinstance(v, torch.device) for v in (*node.args, *node.kwargs.values()))


@torch.no_grad()
def test_a_batch_of_one_is_a_good_enough_example():
    """Traced on one sample, the graph still takes any batch."""
    model = tiny.make("dit")
    gm = graph.trace(model.module, model.example(1), call=model.call)
    inputs = model.example(5)
    assert torch.equal(gm(*inputs), model.eager(inputs))


def test_traces_without_weights():
    """A model on the meta device traces too, to the same nodes: checks of a recipe need no weights."""
    model = tiny.make("dit")
    example = tuple(v.to("meta") for v in model.example(2))
    gm = graph.trace(model.module.to("meta"), example, call=model.call)
    again = tiny.make("dit")
    real = graph.trace(again.module, again.example(2), call=again.call)
    assert [n.meta.get("origin") for n in gm.graph.nodes] == [n.meta.get("origin") for n in real.graph.nodes]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.scale = 2.0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        half = h.view(-1, 2, 2)
        half += t[:, None, None]  # h changes with it
        return h * torch.tensor([self.scale])


@torch.no_grad()
def test_writes_in_place_become_values():
    """A module that writes through a view is right; its graph writes to nothing, its constant is a buffer."""
    module, inputs = InPlace(), (torch.randn(3, 4), torch.randn(3))
    gm = graph.trace(module, (torch.randn(2, 4), torch.randn(2)))
    assert torch.equal(gm(*inputs), module(*inputs))
    targets = [n.target for n in gm.graph.nodes if n.op == "call_function" and hasattr(n.target, "_schema")]
    assert not any(target._schema.is_mutable for target in targets)
    assert len(list(gm.buffers())) == 1


@pytest.mark.parametrize(
    ("example", "dynamic", "message"),
    [
        ((torch.ones(2, 4), 3.0), None, "input 1 of the example is a float"),
        ((torch.ones(2, 4), torch.ones(2)), ((0,),), "dynamic has 1 entries, the example has 2 inputs"),
    ],
)
def test_refuses_a_wrong_example(example, dynamic, message):
    """A mistake in the arguments is said before anything is traced."""
    with pytest.raises(TraceError, match=message):
        graph.trace(InPlace(), example, dynamic=dynamic)


@torch.no_grad()
@pytest.mark.skipif(not os.environ.get("QPASS_DATA"), reason="QPASS_DATA names no folder of checkpoints")
@pytest.mark.parametrize("folder", ["cifar10-unet", "cifar10-dit"])
def test_equals_a_trained_checkpoint(folder):
    """A real checkpoint's graph has difference 0 to it, fused, and below 1e-5 once its attention is split."""
    import diffusers

    path = Path(os.environ["QPASS_DATA"], "checkpoints", folder)
    name = {"cifar10-unet": "UNet2DModel", "cifar10-dit": "DiTTransformer2DModel"}[folder]
    module = getattr(diffusers, name).from_pretrained(path)
    sig = signatures.signature(name, module.config)
    example, call = signatures.example(sig, module.config), partial(signatures.call, sig)
    gm = graph.trace(module, example, call=call, dynamic=sig.dynamic)
    inputs = signatures.example(sig, module.config, batch=3, seed=1)
    wanted = signatures.call(sig, module, *inputs)
    assert torch.equal(gm(*inputs), wanted)
    assert graph.split_attention(gm)
    assert relative(gm(*inputs), wanted) < 1e-5
