"""Checkpoints of DiT: what loads, and the one sentence for each that does not."""

from __future__ import annotations

import argparse
import pickle
import zipfile

import attrs
import pytest
import torch
from qpass_models.dit import DiT
from qpass_models.dit_checkpoint import infer_config, load_dit
from qpass_models.dit_config import SIZES, DiTConfig
from safetensors.torch import save_file

from qpass.errors import ModelError

TINY = DiTConfig(depth=2, width=32, heads=4, patch_size=2, input_size=8, num_classes=10)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return DiT(TINY).state_dict()


def assert_loads(path, state, config=TINY):
    model = load_dit(path, heads=config.heads)
    loaded = model.state_dict()
    assert model.config == config
    assert not model.training
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def save(thing, path):
    torch.save(thing, path)
    return path


def test_pt_round_trip(tmp_path, state):
    """Every weight comes back, and the file alone tells the dimensions."""
    assert_loads(save(state, tmp_path / "dit.pt"), state)


def test_safetensors_round_trip(tmp_path, state):
    """The same layout without pickle."""
    save_file(state, tmp_path / "dit.safetensors")
    assert_loads(tmp_path / "dit.safetensors", state)


def test_pt_of_before_zip_loads(tmp_path, state):
    """The old torch format cannot be mapped to memory; it is read instead."""
    torch.save(state, tmp_path / "dit.pt", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "dit.pt", state)


@pytest.mark.parametrize("key", ["ema", "model"])
def test_wrapped_weights_load(tmp_path, state, key):
    """Either name of the training script, alone."""
    assert_loads(save({key: state, "step": 7}, tmp_path / "dit.pt"), state)


def test_a_training_checkpoint_loads_its_average(tmp_path, state):
    """The original script's layout: "ema" wins over "model", and its options are harmless."""
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    args = argparse.Namespace(model="DiT-XL/2", epochs=1400)
    assert_loads(save({"model": raw, "ema": state, "opt": {}, "args": args}, tmp_path / "dit.pt"), state)


@pytest.mark.parametrize(
    "config",
    [
        attrs.evolve(TINY, depth=1, patch_size=4),
        attrs.evolve(TINY, input_size=10, num_classes=1),
        attrs.evolve(TINY, in_channels=3, learn_sigma=False),
        attrs.evolve(TINY, width=48, heads=3),
    ],
    ids=str,
)
def test_every_dimension_is_inferred(tmp_path, config):
    """From the file alone, given the heads."""
    state = DiT(config).state_dict()
    assert_loads(save(state, tmp_path / "dit.pt"), state, config)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_recognised(name):
    """From shapes alone, heads included."""
    with torch.device("meta"):
        state = DiT(SIZES[name]).state_dict()
    assert infer_config(state) == SIZES[name]


def test_half_precision_stays(tmp_path, state):
    """The model has the checkpoint's dtype."""
    half = {name: value.half() for name, value in state.items()}
    assert_loads(save(half, tmp_path / "dit.pt"), half)
    assert load_dit(tmp_path / "dit.pt", heads=4).blocks[0].attn.qkv.weight.dtype == torch.float16


def test_loaded_weights_are_not_the_file(tmp_path, state):
    """Mapped weights may be changed; the checkpoint on disk stays as it was."""
    path = save(state, tmp_path / "dit.pt")
    before = path.read_bytes()
    model = load_dit(path, heads=4)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.zero_()
    assert not model.pos_embed.requires_grad
    assert model.blocks[0].attn.qkv.weight.requires_grad
    assert path.read_bytes() == before


def refused(path, **options):
    """The error, which must be one line that begins with the file."""
    with pytest.raises(ModelError) as caught:
        load_dit(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_missing_file(tmp_path):
    """A folder is not a file either."""
    assert "no such file" in refused(tmp_path / "dit.pt")
    assert "no such file" in refused(tmp_path)


def test_unreadable_file(tmp_path, state, monkeypatch):
    """A file that may not be read is not called damaged."""
    path = save(state, tmp_path / "dit.pt")

    def load(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", load)
    assert "cannot be read ([Errno 13] Permission denied)" in refused(path)


def test_unknown_ending(tmp_path):
    """The ending says how to read the file."""
    (tmp_path / "dit.npz").write_bytes(b"")
    assert "must end in one of .safetensors, .pt" in refused(tmp_path / "dit.npz")


@pytest.mark.parametrize("kept", [0, 1, 3, 100, 5000, -1])
@pytest.mark.parametrize("kind", ["pt", "old pt", "safetensors"])
def test_cut_short(tmp_path, state, kind, kept):
    """However little or much of the file is left."""
    path = tmp_path / f"dit.{kind.split()[-1]}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged, cut short or not a checkpoint" in refused(path)


@pytest.mark.parametrize("name", ["dit.pt", "dit.safetensors"])
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><p>404", b"version https://git-lfs", b"\x80\x02}q\x00\xff", bytes(99)]
)
def test_something_else_in_the_file(tmp_path, name, content):
    """A web page or a pointer that was downloaded in place of the weights, say."""
    (tmp_path / name).write_bytes(content)
    assert "damaged, cut short or not a checkpoint" in refused(tmp_path / name)


def test_another_zip(tmp_path):
    """A .pt is a zip archive, but not every archive is a .pt."""
    with zipfile.ZipFile(tmp_path / "dit.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "damaged, cut short or not a checkpoint" in refused(tmp_path / "dit.pt")


class Trap:
    """Unpickling it creates the file it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("writer", ["zip", "old", "plain pickle"])
def test_a_pickle_that_runs_code_is_not_run(tmp_path, state, writer):
    """It is refused by name, nothing runs, and the message says how to convert."""
    path, sprung = tmp_path / "dit.pt", tmp_path / "sprung"
    thing = {"trap": Trap(sprung), "ema": state}
    if writer == "plain pickle":
        path.write_bytes(pickle.dumps(thing, protocol=2))
    else:
        torch.save(thing, path, _use_new_zipfile_serialization=writer == "zip")
    message = refused(path)
    assert not sprung.exists()
    assert message.startswith("holds io.open, which is no weight and could run code")
    assert "safetensors.torch.save_file(torch.load(path, weights_only=False)" in message


def test_a_whole_module_is_refused(tmp_path):
    """torch.save(model) stores classes, not only weights."""
    assert "holds torch.nn.modules" in refused(save(torch.nn.Linear(2, 2), tmp_path / "dit.pt"))


def test_not_a_state_dict(tmp_path):
    """A harmless object of another kind is named by its type."""
    assert "must hold a state dict, got list" in refused(save([1, 2], tmp_path / "dit.pt"))


def test_other_keys_are_listed(tmp_path, state):
    """The first few, and how many there are in all."""
    other = {"conv.weight": torch.ones(1)}
    message = refused(save(other, tmp_path / "dit.pt"))
    assert "missing pos_embed, x_embedder.proj.weight, x_embedder.proj.bias, ... (22 in all)" in message
    assert "unexpected conv.weight;" in message
    del state["blocks.1.mlp.fc1.bias"]
    message = refused(save(state, tmp_path / "dit.pt"))
    assert "missing blocks.1.mlp.fc1.bias; unexpected none" in message


def test_a_gap_in_the_blocks(tmp_path, state):
    """Blocks 0 and 1000000 are a damaged DiT of depth 2, not one of depth 1000001."""
    gap = {name.replace("blocks.1.", "blocks.1000000."): value for name, value in state.items()}
    assert "missing blocks.1.attn.qkv.weight" in refused(save(gap, tmp_path / "dit.pt"))


def test_the_layout_of_diffusers_is_named(tmp_path):
    """The likeliest wrong file gets its own way out."""
    message = refused(save({"transformer_blocks.0.ff.net.2.bias": torch.ones(1)}, tmp_path / "dit.pt"))
    assert "this is diffusers' layout" in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pos_embed", torch.zeros(1, 15, 32), "pos_embed must hold a square grid of tokens, got 15"),
        ("pos_embed", torch.zeros(16, 32), "pos_embed must have 3 dimensions, got shape (16, 32)"),
        ("pos_embed", 3, "pos_embed must be a floating-point tensor, got int"),
        ("pos_embed", torch.zeros(1, 16, 32).char(), "must be a floating-point tensor, got torch.int8"),
        (
            "pos_embed",
            torch.zeros(1, 16, 32).half(),
            "must share one dtype, got torch.float16, torch.float32",
        ),
        (
            "blocks.1.mlp.fc1.weight",
            torch.zeros(64, 32),
            "must have shape (128, 32) to fit the other weights",
        ),
        (
            "final_layer.linear.weight",
            torch.zeros(20, 32),
            "must have shape (16, 32) to fit the other weights",
        ),
        ("x_embedder.proj.weight", torch.zeros(0, 4, 2, 2), "width must be at least 1, got 0"),
        ("x_embedder.proj.weight", torch.zeros(32, 4, 2, 1), "must have shape (32, 4, 2, 2)"),
        ("y_embedder.embedding_table.weight", torch.zeros(1, 32), "num_classes must be at least 1, got 0"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, state, name, value, message):
    """With what it should be and what it is."""
    assert message in refused(save({**state, name: value}, tmp_path / "dit.pt"), heads=4)


def test_heads_must_be_known(tmp_path, state):
    """Shapes do not tell them: known by width, else asked for, and they must fit."""
    path = save(state, tmp_path / "dit.pt")
    assert "(384, 768, 1024, 1152), not for width 32; pass heads=" in refused(path)
    assert "heads must divide width, got heads 5 and width 32" in refused(path, heads=5)


def test_size_is_checked(tmp_path, state):
    """A size that was asked for must be the one in the file, and must exist."""
    path = save(state, tmp_path / "dit.pt")
    assert "DiT-S/2 has depth 12, this checkpoint 2; leave size out" in refused(path, heads=4, size="DiT-S/2")
    with pytest.raises(ModelError, match=r"size must be a published DiT, got 'DiT-XL-2'; did you mean 'DiT-XL/2'"):
        load_dit(path, size="DiT-XL-2")
