"""Tensors under dotted names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qpass.graph import tensors


def test_put_get_drop_leave_no_trace():
    """A put tensor is a buffer, saved and moved; dropped, its containers go too, and real modules stay."""
    gm = nn.Module()
    gm.layer = nn.Linear(2, 2)
    before = [name for name, _ in gm.named_modules()]
    tensors.put(gm, "layer.scale", torch.ones(1))
    tensors.put(gm, "blocks.0.attn.qk.scale", torch.ones(1))
    tensors.put(gm, "blocks.0.attn.qk.scale", torch.zeros(2))
    assert set(gm.state_dict()) == {"layer.weight", "layer.bias", "layer.scale", "blocks.0.attn.qk.scale"}
    assert torch.equal(tensors.get(gm, "blocks.0.attn.qk.scale"), torch.zeros(2))
    assert tensors.get(gm, "layer.weight") is gm.layer.weight
    tensors.drop(gm, "blocks.0.attn.qk.scale")
    tensors.drop(gm, "layer.scale")
    assert [name for name, _ in gm.named_modules()] == before


@pytest.mark.parametrize("name", ["layer.weight", "layer.weight.scale", "layer.forward"])
def test_put_never_hides_something_else(name):
    """A name that is a parameter or an attribute already is refused."""
    gm = nn.Module()
    gm.layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=f"cannot put '{name}'"):
        tensors.put(gm, name, torch.ones(1))


def test_get_and_drop_name_what_is_missing():
    """An absent name, a module and a parameter each say so."""
    gm = nn.Module()
    gm.layer = nn.Linear(2, 2)
    with pytest.raises(KeyError, match=r"no tensor named 'layer\.scale'"):
        tensors.get(gm, "layer.scale")
    with pytest.raises(KeyError, match="is a Linear"):
        tensors.get(gm, "layer")
    with pytest.raises(KeyError, match="is no buffer"):
        tensors.drop(gm, "layer.weight")
