"""Folders that hold weights only as a variant, such as fp16, whole or in shards."""

from __future__ import annotations

import shutil

import pipelines
import pytest
import torch
from qpass_models.diffusers_model import DiffusersModel
from qpass_models.weights import choose

from qpass.errors import ModelError
from qpass.sampling import Sampling


def first(adapter, sampling):
    """One image by the eager model in our loop."""
    module = adapter.load()
    with torch.no_grad():
        return next(
            adapter.sample(
                lambda *inputs: adapter.call(module, *inputs),
                seed=0, count=1, sampling=sampling, device=torch.device("cpu"),
            )
        )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "200KB"}, {"safe_serialization": False}])
def test_a_lone_variant_is_loaded(options, tmp_path):
    """The weights that `save_pretrained(variant="fp16")` wrote, as safetensors, in shards or pickled."""
    unet = pipelines.denoiser("unet")
    unet.save_pretrained(tmp_path, variant="fp16", **options)
    loaded = DiffusersModel(path=str(tmp_path)).load().state_dict()
    for name, value in unet.state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_a_whole_pipeline_of_variants(pipeline_folder, tmp_path):
    """Denoiser, autoencoder and text encoders: the images are those of the plain folder."""
    pytest.importorskip("transformers")
    pipelines.stable_diffusion().save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "text_encoder" / "model.fp16.safetensors").is_file()
    sampling = Sampling(steps=2, guidance=3.0, prompts=("a red cat",))
    ours, plain = (
        first(DiffusersModel(path=str(path)), sampling) for path in (tmp_path, pipeline_folder("stable-diffusion"))
    )
    assert torch.equal(ours, plain)


def test_plain_weights_come_first(tmp_path):
    """A variant beside them is not read: here it is of another model."""
    unet = pipelines.denoiser("unet")
    unet.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not one at all")
    assert DiffusersModel(path=str(tmp_path)).load().state_dict().keys() == unet.state_dict().keys()


def test_several_variants_are_named(tmp_path):
    """It is not for us to choose among them."""
    pipelines.denoiser("unet").save_pretrained(tmp_path, variant="fp16")
    pipelines.denoiser("unet").save_pretrained(tmp_path, variant="bf16")
    with pytest.raises(
        ModelError, match="only as variants, and more than one, bf16, fp16; give a folder with one"
    ):
        DiffusersModel(path=str(tmp_path)).load()


def test_text_encoders_of_different_variants_are_named(pipeline_folder, tmp_path):
    """diffusers takes one name for a whole pipeline."""
    pytest.importorskip("transformers")
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder("stable-diffusion-xl"), folder)
    for encoder, variant in (("text_encoder", "fp16"), ("text_encoder_2", "bf16")):
        (folder / encoder / "model.safetensors").rename(folder / encoder / f"model.{variant}.safetensors")
    with pytest.raises(ModelError, match="have weights only as different variants, bf16, fp16; give a folder"):
        first(DiffusersModel(path=str(folder)), Sampling(steps=1, prompts=("a",)))


@pytest.mark.parametrize(
    ("names", "variant", "files"),
    [
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"], None, 0),
        (["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model.bin"], None, 0),
        (["model-00001-of-00002.fp16.safetensors", "pytorch_model.fp16.bin"], "fp16", 0),
        (["diffusion_pytorch_model.non_ema.bin", "diffusion_pytorch_model.safetensors"], None, 1),
        (["openvino_model.bin", "model.onnx", "flax_model.msgpack", "pytorch_model.bin"], None, 3),
    ],
)
def test_which_files_are_loaded(names, variant, files):
    """Names as they are found on the hub."""
    chosen = choose("unet", names)
    assert (chosen.variant, chosen.files) == (variant, (names[files],))


def test_a_folder_without_weights_has_no_variant():
    """What is missing is said by whoever loads."""
    assert choose("unet", ["config.json", "README.md"]).files == ()
