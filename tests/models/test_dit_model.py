"""The adapter of the DiT release's checkpoints: what it says of the autoencoder, and when."""

from __future__ import annotations

import json

import diffusers
import pipelines
import pytest
import torch
from qpass_evaluators.drift import Drift
from qpass_models.dit import DiT
from qpass_models.dit_config import DiTConfig
from qpass_models.dit_model import DiTModel
from qpass_passes.assign import Assign
from qpass_passes.simulate import Simulate

import qpass
import qpass.run.execute
from qpass.errors import ModelError
from qpass.sampling import Sampling, make_scheduler


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two blocks on latents of four channels."""
    torch.manual_seed(0)
    model = DiT(DiTConfig(depth=2, width=32, heads=2, patch_size=2, input_size=8, in_channels=4, num_classes=10))
    file = tmp_path_factory.mktemp("dit") / "dit.pt"
    torch.save(model.state_dict(), file)
    return str(file)


def nothing(folder):
    """No folder at all."""


def pipeline(folder):
    """The folder around the autoencoder's."""
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")


def codebook(folder):
    """Another kind of autoencoder."""
    pipelines.vqvae(4).save_pretrained(folder)


def three_channels(folder):
    """Of other latents."""
    pipelines.vae(3).save_pretrained(folder)


def no_weights(folder):
    """A configuration alone."""
    pipelines.vae().save_config(folder)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (nothing, "no config.json in '.*'; give the folder of an AutoencoderKL"),
        (pipeline, "no config.json in '.*'; give .* such as the vae folder of a pipeline"),
        (codebook, "'.*' holds a VQModel; give the folder of an AutoencoderKL"),
        (three_channels, "'.*' decodes latents of 3 channels, and the checkpoint's have 4; give the one"),
        (no_weights, "no weights in '.*'; give the folder"),
    ],
)
@pytest.mark.parametrize("evaluators", [(), (Drift(samples=2),)])
def test_a_wrong_autoencoder_is_told_before_tracing(write, message, evaluators, checkpoint, tmp_path, monkeypatch):
    """Whether images are asked for or not: the run neither traces nor leaves anything behind."""
    write(tmp_path / "vae")
    model = DiTModel(path=checkpoint, heads=2, vae=str(tmp_path / "vae"))
    assert model.cannot_sample().startswith("model.vae: ")
    monkeypatch.setattr(qpass.run.execute, "trace", lambda *given, **options: pytest.fail("it traced"))
    with pytest.raises(ModelError, match=f"^model.vae: {message}"):
        qpass.quantize(
            model, [Assign(), Simulate()], evaluators=evaluators, out=tmp_path / "run", sampling=Sampling(steps=2)
        )
    assert not (tmp_path / "run").exists()


def test_the_right_one_decodes(checkpoint, tmp_path):
    """An AutoencoderKL of four channels, its weights plain or a variant."""
    pipelines.vae().save_pretrained(tmp_path, variant="fp16")
    model = DiTModel(path=checkpoint, heads=2, vae=str(tmp_path))
    assert model.cannot_sample() is None
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path, variant="fp16")
    with torch.no_grad():
        image = theirs.decode(latents / theirs.config.scaling_factor).sample.clamp(-1, 1) / 2 + 0.5
    ours = model.sampler().decode(latents).float() / 255
    assert ours.shape[1:3] == model.sampler().size
    assert (ours - image.permute(0, 2, 3, 1)).abs().max() <= 1 / 255


@pytest.mark.parametrize(
    ("channels", "decoded", "clips"), [(1, False, True), (3, False, True), (3, True, False), (4, True, False)]
)
def test_only_pixels_are_clipped(channels, decoded, clips, tmp_path):
    """Without an autoencoder 1 or 3 channels are pixels within [-1, 1]; with one they are latents, also where 3."""
    torch.manual_seed(0)
    config = DiTConfig(
        depth=1, width=32, heads=2, patch_size=2, input_size=8, in_channels=channels, num_classes=10
    )
    torch.save(DiT(config).state_dict(), tmp_path / "dit.pt")
    pipelines.vae(channels).save_pretrained(tmp_path / "vae")
    model = DiTModel(path=str(tmp_path / "dit.pt"), heads=2, vae=str(tmp_path / "vae") if decoded else "")
    assert model.cannot_sample() is None
    sampler = model.sampler()
    x = 3 * torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = make_scheduler(Sampling(scheduler="ddim", steps=1), sampler.scheduler_config)
    t = int(scheduler.timesteps[0])
    x0 = x / scheduler.alphas_cumprod[t].sqrt()  # of an output of 0
    found = scheduler.step(torch.zeros_like(x), t, x).pred_original_sample
    assert torch.allclose(found, x0.clamp(-1, 1) if clips else x0)
    assert sampler.decode(x).shape == (2, *sampler.size, 3)


def test_the_fingerprint_knows_the_autoencoder(checkpoint, tmp_path):
    """Its weights and its configuration; and the same files elsewhere are the same."""
    coder = pipelines.vae()

    def mark(folder):
        return DiTModel(path=checkpoint, heads=2, vae=str(folder) if folder else "").fingerprint()

    for name in ("one", "same", "scaled", "other"):
        coder.save_pretrained(tmp_path / name)
    config = tmp_path / "scaled" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.5}))
    with torch.no_grad():
        coder.post_quant_conv.bias += 1
    coder.save_pretrained(tmp_path / "other")
    marks = [mark(tmp_path / name) for name in ("one", "scaled", "other")]
    assert len({mark(None), *marks}) == 4
    assert mark(tmp_path / "same") == marks[0]
