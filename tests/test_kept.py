"""Tensors kept beside what is known of them come back as they were, or, where anything is amiss, not at all."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from qpass.kept import hash_of, keep, kept

TENSORS = {"codes": torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4), "scale": torch.rand(3)}
ABOUT = {"loss": 0.7, "block": "mid", "rows": [1, None]}


@pytest.fixture
def file(tmp_path):
    keep(tmp_path / "one.safetensors", {**TENSORS, "turned": TENSORS["codes"].T}, ABOUT)
    return tmp_path / "one.safetensors"


def test_round_trip(file):
    """Values, types and shapes, a transposed view's too; and what was said of them."""
    tensors, about = kept(file)
    assert about == ABOUT
    assert tensors.keys() == {"codes", "scale", "turned"}
    for name, tensor in {**TENSORS, "turned": TENSORS["codes"].T}.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_any_damaged_byte(file):
    """Whichever byte is another, in the header or behind it, nothing comes back and nothing is raised."""
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert kept(file) is None, place


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_half_a_file(file, share):
    """Nor of a file that was cut off."""
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert kept(file) is None


def test_another_file(tmp_path):
    """A file that is missing, or that something else wrote, is none of these."""
    assert kept(tmp_path / "missing") is None
    save_file(TENSORS, tmp_path / "plain")
    assert load_file(tmp_path / "plain").keys() == TENSORS.keys()
    assert kept(tmp_path / "plain") is None


def test_the_hash_knows_names():
    """In any order the same; with two names exchanged another."""
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert hash_of({"a": one, "b": two}) == hash_of({"b": two, "a": one})
    assert hash_of({"a": one, "b": two}) != hash_of({"a": two, "b": one})
