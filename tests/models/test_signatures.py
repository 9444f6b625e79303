"""The table of signatures against the classes themselves."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import attrs
import pytest
import torch
from qpass_models import signatures

from qpass.errors import ModelError

SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
    "in_channels": 4,
    "cross_attention_dim": (24, 24),
}
FLUX = {"in_channels": 16, "joint_attention_dim": 24, "pooled_projection_dim": 20, "guidance_embeds": True}


@pytest.mark.parametrize("name", signatures.known())
def test_parameters_are_the_class_own(name):
    """Positional order is that of diffusers' own forward, and every input is one of its parameters."""
    import diffusers

    sig = signatures.signature(name, {})
    own = list(inspect.signature(getattr(diffusers, name).forward).parameters)[1:]
    assert list(sig.parameters) == own
    assert {key.partition(".")[0] for key in sig.inputs} <= set(own)
    assert len(sig.dynamic) == len(sig.inputs)


@pytest.mark.parametrize(
    ("name", "config", "extra"),
    [
        ("UNet2DModel", {}, ()),
        ("UNet2DModel", {"num_class_embeds": 10}, ("class_labels",)),
        ("UNet2DConditionModel", {"class_embed_type": "timestep"}, ("class_labels",)),
        ("UNet2DConditionModel", {"time_cond_proj_dim": 256}, ("timestep_cond",)),
        ("UNet2DConditionModel", SDXL, ("added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids")),
        ("PixArtTransformer2DModel", {"sample_size": 64}, ()),
        (
            "PixArtTransformer2DModel",
            {"sample_size": 128},
            ("added_cond_kwargs.resolution", "added_cond_kwargs.aspect_ratio"),
        ),
        ("PixArtTransformer2DModel", {"sample_size": 128, "use_additional_conditions": False}, ()),
        ("FluxTransformer2DModel", {"guidance_embeds": False}, ()),
        ("FluxTransformer2DModel", FLUX, ("guidance",)),
    ],
)
def test_inputs_follow_the_configuration(name, config, extra):
    """What a configuration asks for comes after what the class always takes."""
    sig = signatures.signature(name, config)
    assert sig.inputs[1] == "timestep"
    optional = [key for key in sig.inputs if key in ("class_labels", "timestep_cond", "guidance") or "." in key]
    assert tuple(optional) == extra


def test_a_signature_is_json():
    """To JSON and back, it is equal: artifacts store it."""
    sig = signatures.signature("UNet2DConditionModel", SDXL, optional=("encoder_attention_mask",))
    plain = json.loads(json.dumps(attrs.asdict(sig)))
    plain = {
        **plain,
        "inputs": tuple(plain["inputs"]),
        "parameters": tuple(plain["parameters"]),
        "dynamic": tuple(map(tuple, plain["dynamic"])),
    }
    assert signatures.Signature(**plain) == sig


def test_examples_are_seeded_and_shaped():
    """A seed gives the same values in every dtype; positions have no batch, labels are integers."""
    sig = signatures.signature("FluxTransformer2DModel", FLUX)
    one, same, half = (
        signatures.example(sig, FLUX, batch=3, seed=5, size=(8, 4), dtype=d)
        for d in (None, torch.float32, torch.bfloat16)
    )
    assert [tuple(v.shape) for v in one] == [(3, 8, 16), (3,), (3, 7, 24), (3, 20), (8, 3), (7, 3), (3,)]
    for a, b, c in zip(one, same, half, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.to(c.dtype), c)
    dit = {"in_channels": 4, "num_embeds_ada_norm": 10}
    x, t, label = signatures.example(signatures.signature("DiTTransformer2DModel", dit), dit, batch=64)
    assert x.shape == (64, 4, 32, 32)
    assert t.dtype is label.dtype is torch.int64
    assert int(label.max()) < 10


def test_call_builds_nested_keywords():
    """Arguments in denoise order arrive under their dotted keywords; a wrong number of them is refused."""

    def module(**kwargs):
        return type("Output", (), {"sample": kwargs})

    sig = signatures.signature("UNet2DConditionModel", SDXL)
    assert signatures.call(sig, module, 1, 2, 3, 4, 5) == {
        "sample": 1,
        "timestep": 2,
        "encoder_hidden_states": 3,
        "added_cond_kwargs": {"text_embeds": 4, "time_ids": 5},
        "return_dict": True,
    }
    with pytest.raises(ModelError, match=r"takes 5 inputs, sample, timestep, .*; it got 1"):
        signatures.call(sig, module, 1)


def test_unknown_names_are_told_the_nearest():
    """A class, an input or a conditioning that is not in the table is a ModelError with a way out."""
    with pytest.raises(ModelError, match="did you mean 'UNet2DModel'"):
        signatures.signature("UNet2Model", {})
    with pytest.raises(ModelError, match="no optional input 'mask'"):
        signatures.signature("PixArtTransformer2DModel", {}, optional=("mask",))
    with pytest.raises(ModelError, match="addition_embed_type='image'"):
        signatures.signature("UNet2DConditionModel", {"addition_embed_type": "image"})


def test_the_table_imports_no_torch():
    """Reading the table costs no import of torch or diffusers."""
    script = "import sys, qpass_models.signatures; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False"]
