"""Draw images: noise, one scheduler of diffusers, and any denoiser called as `denoise(x, t, *cond)`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from attrs import validators as v
from torch import Tensor

from qpass.errors import RecipeError
from qpass.schedule import Step, StepPlan

Denoise = Callable[..., Tensor]
SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}


@attrs.frozen(kw_only=True)
class Sampling:
    """How images are drawn: the `[sampling]` section of a recipe."""

    scheduler: str = attrs.field(
        default="ddim", validator=v.in_(tuple(SCHEDULERS)), metadata={"help": "ddim or ddpm"}
    )
    steps: int = attrs.field(default=20, validator=v.ge(1), metadata={"help": "denoising steps per image"})
    eta: float = attrs.field(
        default=0.0,
        validator=[v.ge(0.0), v.le(1.0)],
        metadata={"help": "DDIM's share of fresh noise at each step; 0 is deterministic"},
    )
    guidance: float = attrs.field(
        default=1.0,
        validator=v.ge(0.0),
        metadata={"help": "classifier-free guidance; 1 calls the model once per step, others twice"},
    )
    batch: int = attrs.field(default=64, validator=v.ge(1), metadata={"help": "images drawn at a time"})


@attrs.frozen(kw_only=True, eq=False)
class Conditions:
    """The denoiser's further inputs for some images, and those of no condition where guidance needs them."""

    given: tuple[Tensor, ...] = ()
    empty: tuple[Tensor, ...] | None = None


@attrs.frozen(kw_only=True, eq=False)
class Sampler:
    """What a model adapter tells of itself so that images can be drawn from it.

    `shape` is one latent's (C, H, W). `dtype` is what the denoiser takes; the latents themselves stay in fp32.
    `conditions(indices)` are those of the numbered images; `decode` turns latents into uint8 images, N x H x W x 3.
    """

    shape: tuple[int, ...]
    scheduler_config: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    conditions: Callable[[Sequence[int]], Conditions] = lambda indices: Conditions()
    decode: Callable[[Tensor], Tensor] = lambda x: to_uint8(x)


@attrs.frozen(kw_only=True, eq=False)
class Moment:
    """One call of the denoiser within a sampling: its inputs, and the latents before and after the step."""

    index: int
    step: Step
    inputs: tuple[Tensor, ...]
    before: Tensor
    after: Tensor


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """A source of noise for image `index` of a stream, whatever batch it is drawn in."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], N x C x H x W, as uint8, N x H x W x C, rounded to nearest.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 2.0]).reshape(1, 3, 1, 1)).flatten()
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    pixels = (x.float() / 2 + 0.5).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def make_scheduler(sampling: Sampling, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler, on its timesteps."""
    import diffusers

    try:
        scheduler = getattr(diffusers, SCHEDULERS[sampling.scheduler]).from_config(dict(config))
    except Exception as error:  # diffusers raises whatever a wrong value happens to lead to
        reason = " ".join(str(error).split())
        raise RecipeError(f"the model's noise schedule cannot be built: {reason}") from error
    known = scheduler.config.num_train_timesteps
    if sampling.steps > known:
        raise RecipeError(f"sampling.steps: at most the model's {known} timesteps, not {sampling.steps}")
    scheduler.set_timesteps(sampling.steps)
    return scheduler


def plain_plan(sampling: Sampling, config: Mapping[str, Any]) -> StepPlan:
    """The steps a sampler takes when no pass has a say."""
    times = [int(t) for t in make_scheduler(sampling, config).timesteps]
    return StepPlan(steps=tuple(Step(t=t, t_prev=p) for t, p in zip(times, [*times[1:], -1], strict=True)))


def trajectory(
    denoise: Denoise,
    sampler: Sampler,
    sampling: Sampling,
    *,
    seed: int,
    stream: str,
    indices: Sequence[int],
    device: torch.device,
) -> Iterator[Moment]:
    """Sample the numbered images, one moment at each step. The last moment's `after` is the result."""
    scheduler = make_scheduler(sampling, sampler.scheduler_config)
    sources = [generator(seed, stream, i) for i in indices]
    noise = torch.stack([torch.randn(sampler.shape, generator=g) for g in sources])
    x = (noise * scheduler.init_noise_sigma).to(device)
    conditions = sampler.conditions(indices)
    guided = sampling.guidance != 1.0 and conditions.empty is not None
    extra: dict[str, Any] = {"generator": sources}
    if sampling.scheduler == "ddim":
        extra["eta"] = sampling.eta
    steps = plain_plan(sampling, sampler.scheduler_config).steps
    for index, (t, step) in enumerate(zip(scheduler.timesteps, steps, strict=True)):
        before = x
        inputs = (x.to(sampler.dtype), *(c.to(device) for c in conditions.given))
        if guided and conditions.empty is not None:
            inputs = tuple(
                torch.cat([a, b.to(device)]) for a, b in zip(inputs, (inputs[0], *conditions.empty), strict=True)
            )
        times = t.to(device).expand(len(inputs[0])).contiguous()
        inputs = (inputs[0], times, *inputs[1:])
        noise_hat = denoise(*inputs)[:, : sampler.shape[0]].float()
        if guided:
            given, empty = noise_hat.chunk(2)
            noise_hat = empty + sampling.guidance * (given - empty)
        x = scheduler.step(noise_hat, t, x, return_dict=False, **extra)[0]
        yield Moment(index=index, step=step, inputs=inputs, before=before, after=x)
