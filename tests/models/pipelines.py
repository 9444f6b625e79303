"""Whole pipelines of diffusers, tiny and seeded: tokenizers, text encoders, autoencoder, denoiser and schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

LETTERS = [chr(code) for code in range(97, 123)]
WIDTH = 24  # of the text


def clip_tokenizer() -> Any:
    """CLIP's, of letters alone."""
    import transformers

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def t5_tokenizer() -> Any:
    """T5's, of letters alone."""
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=16)


def clip(seed: int, width: int = WIDTH, projection: int = 0) -> Any:
    """A text encoder of two layers, with a projection where one is asked for."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=projection or width, bos_token_id=52, eos_token_id=53,
        pad_token_id=53,
    )  # fmt: skip
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return awake(cls(config), seed)


def t5(seed: int, width: int = WIDTH) -> Any:
    """The encoder half of a T5."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.T5Config(vocab_size=30, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return awake(transformers.T5EncoderModel(config), seed)


def awake(module: Any, seed: int = 1) -> Any:
    """In eval mode, with no weight at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def vae(channels: int = 4, **options: Any) -> Any:
    """An autoencoder that halves images once."""
    torch.manual_seed(5)
    return awake(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=channels, **options,
        )
    )  # fmt: skip


def vqvae(channels: int = 3) -> Any:
    """One with a codebook, as of LDM-4."""
    torch.manual_seed(5)
    return awake(
        diffusers.VQModel(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=channels,
            num_vq_embeddings=64, scaling_factor=1.0,
        )
    )  # fmt: skip


def denoiser(name: str, **options: Any) -> Any:
    """The denoiser of that name among those that tracing is held to."""
    import tiny

    class_name, config = tiny.CONFIGS[name]
    own = {k: v for k, v in config.items() if not (name == "flux" and k == "sample_size")}
    torch.manual_seed(0)
    return awake(getattr(diffusers, class_name)(**{**own, **options}))


def stable_diffusion() -> Any:
    """Stable Diffusion 1 and 2."""
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(1), tokenizer=clip_tokenizer(), unet=denoiser("ldm"),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl() -> Any:
    """SDXL: two encoders, whose states are joined, and the sizes."""
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(1, 12), tokenizer=clip_tokenizer(), text_encoder_2=clip(2, 12, 16),
        tokenizer_2=clip_tokenizer(), unet=denoiser("sdxl"),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )  # fmt: skip


def pixart() -> Any:
    """PixArt-alpha: T5 and its mask, and a denoiser that predicts a variance too."""
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(3), vae=vae(), transformer=denoiser("pixart", out_channels=8),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def stable_diffusion_3() -> Any:
    """SD3: three encoders, states in a row and pooled, a rectified flow with a fixed shift."""
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.1), text_encoder=clip(1, 12, 12), tokenizer=clip_tokenizer(),
        text_encoder_2=clip(2, 8, 8), tokenizer_2=clip_tokenizer(), text_encoder_3=t5(3),
        tokenizer_3=t5_tokenizer(), transformer=denoiser("sd3"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux() -> Any:
    """Flux: pooled CLIP, T5, packed latents with positions, guidance as an input, a shift by image size."""
    pipe = diffusers.FluxPipeline(
        vae=vae(shift_factor=0.1), text_encoder=clip(1, 20), tokenizer=clip_tokenizer(), text_encoder_2=t5(3),
        tokenizer_2=t5_tokenizer(), transformer=denoiser("flux"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip
    pipe.transformer.register_to_config(sample_size=8)  # ours: the pipeline takes its size from the call
    return pipe


def ldm_schedule() -> Any:
    """The LDM release's."""
    return diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def lsun_bedrooms() -> dict[str, Any]:
    """LDM-4: latents of three channels and a codebook."""
    return {"unet": denoiser("unet"), "vqvae": vqvae(), "scheduler": ldm_schedule()}


def lsun_churches() -> dict[str, Any]:
    """LDM-8: latents of four channels and a Gaussian autoencoder."""
    unet = denoiser("unet", in_channels=4, out_channels=4)
    return {"unet": unet, "vae": vae(), "scheduler": ldm_schedule()}


def imagenet_ldm4() -> dict[str, Any]:
    """Ten classes through cross-attention."""
    unet = denoiser("ldm", in_channels=3, out_channels=3)
    return {"unet": unet, "vqvae": vqvae(), "scheduler": ldm_schedule()}


def class_table() -> torch.Tensor:
    """Ten classes and none."""
    return torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(4))


def dit() -> Any:
    """DiT: a thousand classes, a learned variance."""
    return diffusers.DiTPipeline(
        transformer=denoiser("dit", num_embeds_ada_norm=1000, out_channels=8), vae=vae(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )  # fmt: skip


LATENT: dict[str, Callable[[], Any]] = {
    "lsun-bedrooms": lsun_bedrooms,
    "lsun-churches": lsun_churches,
    "imagenet-ldm4": imagenet_ldm4,
    "dit": dit,
}


def write(name: str, folder: Path) -> None:
    """A whole pipeline into a folder; what diffusers has no pipeline for, part by part."""
    made = TEXT[name][0]() if name in TEXT else LATENT[name]()
    if not isinstance(made, dict):
        made.save_pretrained(folder)
        return
    for part, module in made.items():
        module.save_pretrained(folder / part)
    (folder / "model_index.json").write_text("{}")
    if name == "imagenet-ldm4":
        (folder / "class_embedder").mkdir()
        save_file({"embedding.weight": class_table()}, folder / "class_embedder" / "model.safetensors")


TEXT: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "stable-diffusion": (stable_diffusion, {"scheduler": "ddim"}, {}),
    "stable-diffusion-xl": (stable_diffusion_xl, {"scheduler": "ddim"}, {}),
    "pixart": (pixart, {"scheduler": "dpm-solver++"}, {"use_resolution_binning": False, "clean_caption": False}),
    "stable-diffusion-3": (stable_diffusion_3, {"scheduler": "euler-flow"}, {}),
    "flux": (flux, {"scheduler": "euler-flow"}, {"max_sequence_length": 512}),
}
"""Name: the pipeline, our sampling options for its scheduler, and what else its own call takes."""
