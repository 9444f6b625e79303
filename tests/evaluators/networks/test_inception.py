"""Inception's features, held to pytorch-fid's and torch-fidelity's classes on the same weights."""

from __future__ import annotations

import shutil

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from qpass_evaluators.inception_score import InceptionScore
from qpass_evaluators.networks import Inception, convolution, inception_weights, weight_files
from safetensors.torch import save_file

from qpass.evaluator import EvaluationError


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|"""
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def ours(pictures):
    return Inception().features(pictures)


@pytest.fixture(scope="module")
def planes(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def full_weights(tmp_path_factory):
    """The shipped weights with a 1008-way layer, in the format of pytorch-fid's download."""
    pytest.importorskip("torch_fidelity")
    import peers

    file = tmp_path_factory.mktemp("weights") / "full.pth"
    torch.save(peers.state_dict(), file)
    return file


def test_inception_score_finds_torch_fidelitys_download(full_weights, tmp_path, monkeypatch):
    """Where torch.hub keeps files, under the name of its release; a file that is given goes first."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    shutil.copy(full_weights, place)
    assert InceptionScore().network().path == place
    assert InceptionScore(weights=str(full_weights)).network().path == full_weights


def test_pool_and_spatial_equal_pytorch_fids(ours, planes):
    """Within 1e-5: its output, and its Mixed_6d.branch1x1 seen by a hook, first 7 channels, channels last."""
    pytest.importorskip("pytorch_fid")
    import peers

    net, seen = peers.pytorch_fid(), []
    # of its third block, the seventh module is Mixed_6d
    net.blocks[2][6].branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        pool = net(planes.float() / 255)[0].flatten(1)
    assert apart(ours["pool"], pool) < 1e-5
    assert apart(ours["spatial"], seen[0].permute(0, 2, 3, 1)[..., :7].flatten(1)) < 1e-5


def test_tensorflow_features_equal_torch_fidelitys(pictures, planes, full_weights):
    """Within 1e-5, pool and the logits without bias that its Inception Score is made of."""
    import peers

    with torch.no_grad():
        pool, logits = peers.torch_fidelity(["2048", "logits_unbiased"])(planes)
    network = Inception(resize="tensorflow", weights=str(full_weights))
    assert dict(network.dimensions()) == {"pool": 2048, "spatial": 2023, "logits": 1008}
    found = network.features(pictures)
    assert apart(found["pool"], pool) < 1e-5
    assert apart(found["logits"], logits) < 1e-5


def test_the_two_resizes_give_unlike_features(ours, pictures):
    assert apart(Inception(resize="tensorflow").features(pictures)["pool"], ours["pool"]) > 0.05


def test_bfloat16_is_close(ours, pictures):
    found = Inception(precision="bfloat16").features(pictures)
    assert found["pool"].dtype == found["spatial"].dtype == torch.float32
    assert apart(found["pool"], ours["pool"]) < 0.05
    assert apart(found["spatial"], ours["spatial"]) < 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_image_does_not_depend_on_its_batch(pictures, precision):
    """Alone, in fives, and across two batches."""
    network = Inception(precision=precision)
    together = network.features(np.concatenate([pictures] * 4))["pool"]
    alone = torch.cat([network.features(pictures[i : i + 1])["pool"] for i in range(2)])
    assert apart(together[:2], alone) < 1e-5
    assert apart(together[15:], together[:5]) < 1e-5


def test_plain_operators_agree_with_packed_ones(ours, pictures, monkeypatch):
    """Where oneDNN's operators are missing, features are the same up to rounding."""
    monkeypatch.setattr(convolution, "packs", lambda device, dtype: False)
    inception_weights.load.cache_clear()
    try:
        assert apart(Inception().features(pictures)["pool"], ours["pool"]) < 1e-5
    finally:
        inception_weights.load.cache_clear()


def test_batch_norm_is_folded_exactly():
    """w * x + b equals the convolution followed by batch-norm."""
    state = weight_files.read(inception_weights.SHIPPED)
    name = "Mixed_6b.branch7x7_1"
    weight, bias = inception_weights.fold(name, state)
    x = torch.randn(1, 768, 3, 3, generator=torch.Generator().manual_seed(0))
    mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    expected = F.batch_norm(
        F.conv2d(x, state[f"{name}.conv.weight"]), mean, variance, bias=state[f"{name}.bn.bias"], eps=1e-3
    )
    assert torch.allclose(F.conv2d(x, weight, bias), expected, atol=1e-4)


def test_no_images_give_no_rows():
    found = Inception().features(np.zeros((0, 32, 32, 3), np.uint8))
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {"pool": (0, 2048), "spatial": (0, 2023)}


def test_configuration_is_hashable_and_in_the_protocol():
    """Options hash; weights stay outside; the protocol is plain JSON and tells configurations apart."""
    assert hash(Inception()) == hash(Inception()) != hash(Inception(precision="bfloat16"))
    assert dict(Inception(resize="tensorflow").protocol()) == {
        "features": "inception-2015",
        "weights": Inception().fingerprint(),
        "resize": "tensorflow",
        "precision": "float32",
    }
    assert attrs.fields_dict(Inception).keys() == {"resize", "precision", "weights"}


@pytest.mark.parametrize("options", [{"resize": "bicubic"}, {"precision": "float16"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="must be in"):
        Inception(**options)


def test_weights_of_something_else_are_refused(tmp_path):
    """A file that is missing, damaged, pickled, or of another network: one line each."""
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    files = {name: tmp_path / name for name in ("none.pth", "cut.safetensors", "object.pth", "other.safetensors")}
    files["cut.safetensors"].write_bytes(inception_weights.SHIPPED.read_bytes()[:1000])
    torch.save({"a": print}, files["object.pth"])
    save_file({"a": torch.zeros(1)}, files["other.safetensors"])
    for file, words in zip(
        files.values(), ("no file", "cannot be read", "cannot be read", "missing"), strict=True
    ):
        with pytest.raises(EvaluationError, match=words) as caught:
            Inception(weights=str(file)).features(picture)
        assert "\n" not in str(caught.value)
