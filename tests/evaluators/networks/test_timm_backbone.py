"""timm's models as features, on weights made here: small, random, and in a file as if they were trained."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from qpass_evaluators.networks import TimmBackbone
from qpass_evaluators.networks.timm_backbone import resize
from safetensors.torch import save_file

from qpass.evaluator import EvaluationError


@pytest.fixture(scope="module", params=["test_vit", "test_resnet", "test_efficientnet"])
def backbone(request, tmp_path_factory):
    """A model with its classifier, and a file of its weights."""
    torch.manual_seed(0)
    net = timm.create_model(request.param, pretrained=False).eval()
    file = tmp_path_factory.mktemp("timm") / f"{request.param}.safetensors"
    save_file(net.state_dict(), file)
    return net, TimmBackbone(model=request.param, weights=str(file))


def test_features_are_what_the_classifier_gets(backbone, pictures):
    """The model's own pre-logits, of images that timm's own normalisation made."""
    net, network = backbone
    config = timm.data.resolve_model_data_config(net)
    transform = timm.data.create_transform(**{**config, "crop_pct": 1.0})
    with torch.no_grad():
        x = torch.stack([transform(Image.fromarray(image)) for image in pictures])
        expected = net.forward_head(net.forward_features(x), pre_logits=True)
    found = network.features(pictures)["pool"]
    assert found.shape == (5, network.dimensions()["pool"])
    assert (found - expected).norm() / expected.norm() < 0.02  # PIL's weights are rounded to 8 bits


def test_features_are_fp32_whatever_the_process_was_told(backbone, pictures):
    """Where training scripts let torch multiply in bf16, features stay what they are, and so does what was told."""
    _, network = backbone
    before = network.features(pictures)["pool"]
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(network.features(pictures)["pool"], before)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("size", "side"), [((32, 32), 160), ((300, 200), 64)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resize_is_pils(size, side, mode):
    """Within one of 256 levels but for one value in a thousand, up and down: PIL rounds between the two axes."""
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    found = resize(torch.from_numpy(images), side, mode).permute(0, 2, 3, 1).numpy()
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    expected = np.stack([np.asarray(Image.fromarray(i).resize((side, side), filters[mode])) for i in images])
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 2
    assert (apart > 1).mean() < 1e-3


def test_protocol_names_all_that_determines_features(backbone):
    net, network = backbone
    protocol = network.protocol()
    mode = timm.data.resolve_model_data_config(net)["interpolation"]
    assert protocol["features"] == f"timm/{network.model}"
    assert protocol["resize"] == f"{mode} to 160, antialias, rounded to uint8"
    assert protocol["weights"] == network.fingerprint()


def test_untrained_features_are_refused(pictures, tmp_path):
    """Without weights, the error is the command that fetches them; part of the weights is not enough."""
    with pytest.raises(EvaluationError, match=r"untrained.*create_model\('test_vit', pretrained=True\)"):
        TimmBackbone(model="test_vit").features(pictures)
    with pytest.raises(EvaluationError, match=r"no file.*create_model"):
        TimmBackbone(model="test_vit", weights=str(tmp_path / "none.safetensors")).features(pictures)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    del state["norm.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(EvaluationError, match=r"1 of \d+ tensors are missing, the first is 'norm.weight'"):
        TimmBackbone(model="test_vit", weights=str(tmp_path / "part.safetensors")).features(pictures)


def test_another_size_and_another_name(pictures, tmp_path):
    """Position embeddings are resized by timm; a name that timm does not know gets the nearest one."""
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "vit.safetensors")
    small = TimmBackbone(model="test_vit", weights=str(tmp_path / "vit.safetensors"), size=64)
    assert small.features(pictures)["pool"].shape == (5, 64)
    assert "to 64" in small.protocol()["resize"]
    with pytest.raises(EvaluationError, match="did you mean 'test_vit'"):
        TimmBackbone(model="test_vitt").features(pictures)
