"""Hub ids: which files of a repository are fetched, how often it is asked, and what is done offline."""

from __future__ import annotations

import shutil

import huggingface_hub
import pipelines
import pytest
import qpass_models.diffusers_model
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from qpass_models.diffusers_model import DiffusersModel
from qpass_models.hub import wanted
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import Simulate

import qpass
from qpass.errors import ModelError
from qpass.sampling import Sampling

CONFIGS = ("unet", "vae", "text_encoder", "safety_checker")
NAMED = {"text_encoder": ("model", "pytorch_model"), "safety_checker": ("model", "pytorch_model")}
STABLE_DIFFUSION = [
    "README.md", "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors",
    "v1-5-pruned-emaonly.safetensors", "v1-inference.yaml", "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "unet/diffusion_pytorch_model.non_ema.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
    *(f"{part}/config.json" for part in CONFIGS),
    *(
        f"{part}/{stem}{variant}.{ending}"
        for part in CONFIGS
        for stem, ending in zip(NAMED.get(part, ("diffusion_pytorch_model",) * 2), ("safetensors", "bin"), strict=True)
        for variant in ("", ".fp16")
    ),
]  # fmt: skip


def test_what_is_fetched_of_a_pipeline():
    """As of Stable Diffusion's: the parts in use, and one form of the weights of each."""
    assert sorted(wanted("a/b", STABLE_DIFFUSION)) == [
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_what_is_fetched_without_safetensors():
    """As of DiT's own folders; and of shards, all with their index."""
    files = [
        "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json",
        "transformer/diffusion_pytorch_model.bin", "vae/config.json", "vae/diffusion_pytorch_model.bin",
    ]  # fmt: skip
    assert wanted("a/b", files) == [files[0], *files[2:4], files[1], *files[4:]]
    shards = [f"transformer/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    assert set(wanted("a/b", [*files, *shards, index])) == {*files, *shards, index} - {files[3]}


def test_what_is_fetched_of_one_network():
    """Its own files at the root, whatever else lies there; and nothing for a component that is none."""
    files = ["config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"]
    more = ["diffusion_pytorch_model.bin", "ema.safetensors", "README.md", "images/0.png"]
    assert wanted("a/b", [*files, *more]) == files
    with pytest.raises(ModelError, match=r"'a/b' holds no component 'uned', .*'unet'"):
        wanted("a/b", STABLE_DIFFUSION, "uned")


def test_the_only_variant_is_fetched():
    """Of several, none: they are named before anything large is on its way."""
    files = ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert wanted("a/b", files) == files
    with pytest.raises(ModelError, match="'a/b/unet' has weights only as variants, and more than one, bf16, fp16"):
        wanted("a/b", [*files, "unet/diffusion_pytorch_model.bf16.safetensors"])


@pytest.fixture
def repository(tmp_path):
    """A pipeline with more in it than is needed."""
    pipelines.write("lsun-churches", tmp_path / "there")
    (tmp_path / "there" / "whole.safetensors").write_bytes(b"large")
    (tmp_path / "there" / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another")
    return tmp_path / "there"


def test_a_run_asks_once(repository, tmp_path, monkeypatch):
    """The listing once and the files once, in a whole run; what arrives is enough to draw images with."""
    asked = []
    listing = [str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()]

    def files(self, name):
        asked.append("files")
        return listing

    def fetch(name, allow_patterns):
        asked.append("fetch")
        for file in filter_repo_objects(listing, allow_patterns=allow_patterns):
            (tmp_path / "here" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, tmp_path / "here" / file)
        return str(tmp_path / "here")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    qpass.quantize(
        DiffusersModel(path="some/model"),
        [Assign(), Simulate(weight=AbsMax(), input=AbsMax())],
        sampling=Sampling(steps=2, batch=2),
        calibration=UniformSteps(samples=2, steps=2),
    )
    assert asked == ["files", "fetch"]
    assert not (tmp_path / "here" / "whole.safetensors").exists()
    assert len(list((tmp_path / "here" / "unet").iterdir())) == 2


def test_offline_the_cache_is_read(repository, tmp_path, monkeypatch):
    """The hub's own library, without a network: what lies in its cache is used, what does not is one error."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "models--some--model"
    shutil.copytree(repository, kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    adapter = DiffusersModel(path="some/model")
    assert adapter.cannot_sample() is None
    assert adapter.class_name == "UNet2DModel"
    with pytest.raises(ModelError, match="'some/other' is no folder here and cannot be had from the hub"):
        DiffusersModel(path="some/other").load()


def test_a_folder_is_found_once(repository, monkeypatch):
    """And not again for each property."""
    found = []
    find = qpass_models.diffusers_model.find
    monkeypatch.setattr(qpass_models.diffusers_model, "find", lambda *given: found.append(given) or find(*given))
    adapter = DiffusersModel(path=str(repository))
    adapter.load(), adapter.example(), adapter.config(), adapter.fingerprint(), adapter.sampler()
    assert len(found) == 1


def test_a_pipeline_with_its_network_at_the_root(tmp_path):
    """As older pipelines of one network lie on the hub, such as google/ddpm-cifar10-32."""
    pipelines.denoiser("unet").save_pretrained(tmp_path)
    pipelines.ldm_schedule().save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    adapter = DiffusersModel(path=str(tmp_path))
    assert adapter.cannot_sample() is None
    assert adapter.schedule()["beta_start"] == 0.0015
