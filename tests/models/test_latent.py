"""Latent diffusion without text: our images are those of diffusers' own pipelines and loops, from the same noise."""

from __future__ import annotations

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from qpass_models.diffusers_model import DiffusersModel
from qpass_models.in_memory import InMemory
from safetensors.torch import save_file

from qpass.errors import ModelError
from qpass.graph import trace
from qpass.sampling import Sampling, generator, make_scheduler


def draw(adapter, sampling, count=3):
    """Images by the eager model in our loop."""
    module = adapter.load()
    with torch.no_grad():
        batches = adapter.sample(
            lambda *inputs: adapter.call(module, *inputs),
            seed=0,
            count=count,
            sampling=sampling,
            device=torch.device("cpu"),
        )
        return torch.cat(list(batches)).numpy()


def sources(count=3):
    return [generator(0, "evaluation", i) for i in range(count)]


def close(ours, theirs):
    """At most one level of 255 apart, and something to see."""
    theirs = (np.asarray(theirs) * 255).round()
    assert ours.shape == theirs.shape
    assert len(np.unique(ours)) > 20
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("name", ["lsun-bedrooms", "lsun-churches"])
def test_unconditional(name, pipeline_folder):
    """LDMPipeline, with a VQModel or an AutoencoderKL, at eta 0."""
    folder = pipeline_folder(name)
    adapter = DiffusersModel(path=str(folder))
    ours = draw(adapter, Sampling(steps=5, batch=2))
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    coder = (
        diffusers.VQModel.from_pretrained(folder / "vqvae")
        if name == "lsun-bedrooms"
        else diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    )
    pipe = diffusers.LDMPipeline(
        vqvae=coder, unet=unet, scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(batch_size=3, generator=sources(), num_inference_steps=5, output_type="np").images
    close(ours, theirs)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_dit_pipeline(scheduler, pipeline_folder):
    """DiTPipeline, whose guidance acts on every channel and whose learned variance it drops."""
    folder = pipeline_folder("dit")
    name = {"DDIMScheduler": "ddim"}.get(scheduler, "dpm-solver++")
    ours = draw(DiffusersModel(path=str(folder)), Sampling(scheduler=name, steps=4, guidance=1.5, batch=2))
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe([0, 1, 2], guidance_scale=1.5, generator=sources(), num_inference_steps=4, output_type="np")
    close(ours, theirs.images)


def test_classes_by_cross_attention(pipeline_folder):
    """ImageNet LDM-4: image i's text is row i of the table, and guidance leads away from the last row."""
    folder = pipeline_folder("imagenet-ldm4")
    adapter = DiffusersModel(path=str(folder))
    assert adapter.cannot_sample() is None
    ours = draw(adapter, Sampling(steps=4, guidance=3.0, spacing="uniform", batch=2), count=12)
    table = pipelines.class_table()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    coder = diffusers.VQModel.from_pretrained(folder / "vqvae").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(4)
    x = torch.stack([torch.randn(3, 8, 8, generator=g) for g in sources(12)])
    classes = table[[*range(10), 0, 1]][:, None]
    none = table[-1].expand_as(classes)
    with torch.no_grad():
        for t in scheduler.timesteps:
            given, empty = unet(x, t, classes).sample, unet(x, t, none).sample
            x = scheduler.step(empty + 3.0 * (given - empty), t, x).prev_sample
        images = (coder.decode(x / coder.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    close(ours, images.permute(0, 2, 3, 1))
    assert not np.array_equal(ours[0], ours[1])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_trace_takes_one_row_of_text(guidance, pipeline_folder):
    """The graph is traced on seven tokens of text; a class embedding is one. It gives what the module gives."""
    adapter = DiffusersModel(path=str(pipeline_folder("imagenet-ldm4")))
    graph = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
    module = adapter.load()
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = (x, torch.tensor([1, 50, 900]), pipelines.class_table()[:3, None])
    with torch.no_grad():
        for batch in (1, 3):
            part = tuple(given[:batch] for given in inputs)
            torch.testing.assert_close(graph(*part), adapter.call(module, *part), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "must hold one safetensors file, not 0"),
        ({"weight": torch.ones(3, 24)}, "must hold `embedding.weight`, classes x width.*it holds weight"),
        ({"embedding.weight": torch.ones(24)}, "must hold `embedding.weight`"),
    ],
)
def test_a_class_table_that_is_none(tensors, message, pipeline_folder, tmp_path):
    """Said with what should lie there."""
    import shutil

    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder("imagenet-ldm4"), folder)
    file = folder / "class_embedder" / "model.safetensors"
    file.unlink()
    if tensors is not None:
        save_file(tensors, file)
    with pytest.raises(ModelError, match=message):
        draw(DiffusersModel(path=str(folder)), Sampling(steps=1))


def test_latents_are_not_clipped():
    """A schedule of another class may not say; DDIM's own default would clip latents as if they were images."""
    schedule = diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True)
    pipe = pipelines.lsun_churches()
    unet = InMemory(module=pipe["unet"], autoencoder=pipe["vae"], scheduler=dict(schedule.config))
    assert unet.sampler().scheduler_config["clip_sample"] is False
    pixels = InMemory(module=pipelines.denoiser("unet"), scheduler={"beta_schedule": "linear"})
    assert "clip_sample" not in pixels.sampler().scheduler_config


def tiny_autoencoder():
    """The kind that previews are drawn with, which names its levels otherwise."""
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), latent_channels=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("coder", "channels", "side"),
    [(pipelines.vae, 4, 2), (pipelines.vqvae, 3, 2), (tiny_autoencoder, 4, 4), (None, 3, 1)],
)
def test_the_size_of_images_is_known_beforehand(coder, channels, side):
    """So evaluators can refuse it before anything is quantized; with no decoding it is that of what is drawn."""
    unet = pipelines.denoiser("unet", in_channels=channels, out_channels=channels)
    adapter = InMemory(module=unet, scheduler={"beta_schedule": "linear"}, autoencoder=coder and coder())
    assert adapter.sampler().size == (8 * side, 8 * side)
    assert draw(adapter, Sampling(steps=1), count=1).shape[1:3] == (8 * side, 8 * side)


def test_an_autoencoder_that_overflows_in_half():
    """SDXL's: its pipeline decodes in single precision where the configuration says so, and so do we."""
    pipe = pipelines.stable_diffusion_xl()
    with torch.no_grad():
        pipe.vae.post_quant_conv.weight.mul_(3e4)
        pipe.vae.post_quant_conv.bias.mul_(3e4)
    pipe.to(torch.float16)
    assert pipe.vae.config.force_upcast
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = InMemory.adopt(pipe).decoder()(latents)
    assert pipe.vae.dtype == torch.float16
    scaled = latents.half().float() / pipe.vae.config.scaling_factor
    theirs = pipe.vae.float().decode(scaled, return_dict=False)[0]
    close(ours.numpy(), pipe.image_processor.postprocess(theirs.detach(), output_type="np"))


def test_latents_with_a_mean_and_deviation_of_their_own():
    """A channel's own, as in newer autoencoders: by hand, x = z std / scale + mean."""
    moments = {"latents_mean": [0.5, -1.0, 2.0, 0.0], "latents_std": [1.0, 2.0, 0.5, 3.0]}
    coder = pipelines.vae(**moments)
    draw = InMemory(module=pipelines.denoiser("ldm"), autoencoder=coder).decoder()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack(
        [
            latents[:, c] * moments["latents_std"][c] / coder.config.scaling_factor + moments["latents_mean"][c]
            for c in range(4)
        ],
        dim=1,
    )
    theirs = (coder.decode(by_hand).sample / 2 + 0.5).clamp(0, 1).detach().permute(0, 2, 3, 1)
    close(draw(latents).numpy(), theirs)


def test_an_option_of_the_schedule_is_changed_alone(pipeline_folder):
    """`model.scheduler` says what differs; the pipeline's betas stay."""
    folder = str(pipeline_folder("lsun-churches"))
    own = DiffusersModel(path=folder).sampler().scheduler_config
    changed = DiffusersModel(path=folder, scheduler={"timestep_spacing": "trailing"}).sampler().scheduler_config
    assert own["beta_end"] == 0.0195
    assert changed == {**own, "timestep_spacing": "trailing"}
    assert make_scheduler(Sampling(steps=4), own).timesteps.tolist() == [751, 501, 251, 1]
    assert make_scheduler(Sampling(steps=4), changed).timesteps.tolist() == [999, 749, 499, 249]
