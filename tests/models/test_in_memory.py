"""Models handed over in Python: taken from wherever they lie, known by all their parts, and left as they were."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import diffusers
import pipelines
import pytest
import torch
from qpass_models.diffusers_model import DiffusersModel
from qpass_models.held import on
from qpass_models.in_memory import InMemory
from torch._subclasses.fake_tensor import FakeTensorMode

from qpass.errors import ModelError
from qpass.sampling import Sampling, generator, make_scheduler

SCHEDULE = {"beta_schedule": "linear"}


def lies(module):
    """The kinds of device that a module's tensors are on."""
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def test_a_module_elsewhere_comes_as_a_copy_on_the_cpu():
    """On fake CUDA tensors, buffers and all; the module itself stays there, and one on the CPU is not copied."""
    with FakeTensorMode():
        with torch.device("cuda"):
            unet = diffusers.UNet2DModel(**dict(pipelines.denoiser("unet").config))
            unet.register_buffer("steps", torch.ones(3))
        loaded = InMemory(module=unet).load()
        assert lies(loaded) == {"cpu"}
        assert lies(unet) == {"cuda"}
        assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in unet.named_parameters()]
    here = pipelines.denoiser("unet")
    assert InMemory(module=here).load() is here


def test_what_is_not_in_memory_is_refused():
    """Offloading leaves weights on the meta device: one sentence, not a copy of nothing."""
    with pytest.raises(ModelError, match="this Linear are not in memory but on the meta device"):
        on(torch.nn.Linear(3, 3, device="meta"), torch.device("cpu"))


def test_decoding_leaves_the_autoencoder_where_it_was():
    """Latents on fake CUDA are decoded there, and the pipeline's own autoencoder is on the CPU again."""
    with FakeTensorMode():
        coder = pipelines.vae()
        draw = InMemory(module=pipelines.denoiser("unet"), scheduler=SCHEDULE, autoencoder=coder).decoder()
        images = draw(torch.ones(2, 4, 4, 4, device="cuda"))
        assert (images.device.type, images.shape) == ("cuda", (2, 8, 8, 3))
        assert lies(coder) == {"cpu"}


def test_the_fingerprint_knows_every_part():
    """Another weight of the autoencoder or of a text encoder, another scaling: nothing made before is kept."""
    pytest.importorskip("transformers")
    pipe = pipelines.stable_diffusion()

    def mark():
        return InMemory.adopt(pipe).fingerprint()

    marks = [mark(), mark()]
    assert marks[0] == marks[1]
    with torch.no_grad():
        for part in (pipe.vae, pipe.text_encoder, pipe.unet):
            next(part.parameters()).add_(0.1)
            marks.append(mark())
    pipe.vae.register_to_config(scaling_factor=0.5)
    marks.append(mark())
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = 8
    marks.append(mark())
    assert len(set(marks)) == len(marks) - 1


def test_the_fingerprint_knows_no_path(tmp_path):
    """The same model loaded from two folders is the same."""
    marks = []
    for name in "ab":
        pipelines.denoiser("unet").save_pretrained(tmp_path / name)
        unet = diffusers.UNet2DModel.from_pretrained(tmp_path / name)
        marks.append(InMemory(module=unet, scheduler=SCHEDULE).fingerprint())
    assert marks[0] == marks[1]


def test_the_fingerprint_knows_what_is_set_beside_the_weights():
    """FreeU's factors, other attention, a hook, an adapter's scale: weights and configuration stay, outputs change."""
    pytest.importorskip("transformers")
    pipe = pipelines.stable_diffusion()

    def mark():
        return InMemory.adopt(pipe).fingerprint()

    marks = [mark()]
    pipe.unet.train()
    assert mark() == marks[0]
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    marks.append(mark())
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.5)
    marks.append(mark())
    pipe.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    marks.append(mark())
    pipe.unet.conv_in.register_forward_hook(lambda module, inputs, output: 2 * output)
    marks.append(mark())
    assert len(set(marks)) == len(marks)


def test_the_fingerprint_knows_which_adapter_speaks():
    """Of two LoRA adapters one, the other, or none: nothing but a switch differs, and the outputs do."""
    peft = pytest.importorskip("peft")
    unet = pipelines.stable_diffusion().unet
    for name in "ab":
        unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name=name)

    def mark():
        return InMemory(module=unet, scheduler=SCHEDULE).fingerprint()

    marks = []
    for switch in (lambda: unet.set_adapter("a"), lambda: unet.set_adapter("b"), unet.disable_adapters):
        switch()
        marks.append(mark())
    assert len(set(marks)) == 3
    unet.enable_adapters()
    unet.set_adapter("a")
    assert mark() == marks[0]


ORDER = """
import sys
import diffusers
from qpass_models.in_memory import InMemory
pipe = diffusers.DDPMPipeline(
    unet=diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ),
    scheduler=diffusers.DDPMScheduler(),
)
adapter = InMemory.adopt(pipe)
print(list(adapter.config()), dict(adapter.schedule()))
"""


def test_a_configuration_is_the_same_in_every_process():
    """diffusers notes which options are defaults, in the order of a set: that is neither kept nor told."""
    told = {
        subprocess.run(
            [sys.executable, "-c", ORDER], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(told) == 1
    assert "_use_default_values" not in told.pop()


def test_a_schedule_in_memory_is_that_of_its_folder(tmp_path):
    """Options that were left at their defaults count as much as those that a folder spells out."""
    pipe = diffusers.DDPMPipeline(unet=pipelines.denoiser("unet"), scheduler=diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "pipe")
    for name in ("ddim", "dpm-solver++", "unipc"):
        sampling = Sampling(scheduler=name, steps=5)
        ours, theirs = (
            make_scheduler(sampling, adapter.sampler().scheduler_config)
            for adapter in (InMemory.adopt(pipe), DiffusersModel(path=str(tmp_path / "pipe")))
        )
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"in_channels": 6}, "takes 6 channels and gives 3"),
        ({"class_embed_type": "identity"}, "class_embed_type is 'identity', which takes vectors"),
        ({"in_channels": 2, "out_channels": 2}, "images have 2 channels"),
    ],
)
def test_what_cannot_be_sampled(options, reason):
    """It is said beforehand and by name, and quantizing without sampling goes on."""
    adapter = InMemory(module=pipelines.denoiser("unet", **options), scheduler=SCHEDULE)
    assert reason in adapter.cannot_sample()


def test_gray_images_have_three_equal_channels():
    """A model of one channel, as those of MNIST are: the image of diffusers' own pipeline, three times over."""
    pipe = diffusers.DDIMPipeline(
        pipelines.denoiser("unet", in_channels=1, out_channels=1), diffusers.DDIMScheduler()
    )
    adapter, source = InMemory.adopt(pipe), generator(0, "evaluation", 0)
    ours = next(
        adapter.sample(
            lambda *inputs: adapter.call(adapter.module, *inputs),
            seed=0, count=1, sampling=Sampling(steps=3), device=torch.device("cpu"),
        )
    )  # fmt: skip
    theirs = torch.from_numpy(pipe(generator=source, num_inference_steps=3, output_type="np").images) * 255
    assert theirs.shape == (1, 8, 8, 1)
    assert (ours - theirs.expand(-1, -1, -1, 3)).abs().max() <= 0.6
