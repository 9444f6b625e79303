"""The sampling loop: noise that depends on seed and image alone, the denoiser with guidance, one step after another."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from qpass.errors import ModelError
from qpass.sampling.ddim import ddim_step
from qpass.sampling.options import Sampling
from qpass.sampling.schedulers import make_scheduler, plan_of
from qpass.schedule import Step

Denoise = Callable[..., Tensor]


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], N x C x H x W, as uint8, N x H x W x C, rounded to nearest; gray becomes three channels.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 2.0]).reshape(1, 3, 1, 1)).flatten()
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
    pixels = (x.float() / 2 + 0.5).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@attrs.frozen(kw_only=True, eq=False)
class Conditions:
    """The denoiser's further inputs for some images, and those of no condition where guidance needs them."""

    given: tuple[Tensor, ...] = ()
    empty: tuple[Tensor, ...] | None = None


@attrs.frozen(kw_only=True, eq=False)
class Sampler:
    """What a model adapter tells of itself so that images can be drawn from it.

    `shape` is one latent's, channels first unless it is a sequence. `scheduler_config` is in diffusers' words; see
    `make_scheduler`. `dtype` is what the denoiser takes; the latents themselves stay in fp32. The denoiser gets
    `time_scale` times the scheduler's timestep. `conditions(indices, sampling)` are those of the numbered images;
    `decode` turns latents into uint8 images, N x H x W x 3; `size` is their height and width, where that is known.
    """

    shape: tuple[int, ...]
    scheduler_config: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    time_scale: float = 1.0
    conditions: Callable[[Sequence[int], Sampling], Conditions] = lambda indices, sampling: Conditions()
    decode: Callable[[Tensor], Tensor] = to_uint8
    size: tuple[int, int] | None = attrs.field()

    @size.default
    def _pixels(self) -> tuple[int, int] | None:
        """Without a decoder of its own, what is drawn is the image."""
        return (self.shape[1], self.shape[2]) if self.decode is to_uint8 and len(self.shape) == 3 else None


@attrs.frozen(kw_only=True, eq=False)
class Moment:
    """One call of the denoiser within a sampling, its output after guidance, and the latents before and after."""

    index: int
    step: Step
    inputs: tuple[Tensor, ...]
    output: Tensor
    before: Tensor
    after: Tensor


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """A source of noise for image `index` of a stream, whatever batch it is drawn in."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


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
    noise = _noise(sampler.shape, sources)
    x = (noise * getattr(scheduler, "init_noise_sigma", 1.0)).to(device)  # flows have none: they start from noise
    conditions = sampler.conditions(indices, sampling)
    guided = sampling.guidance != 1.0 and conditions.empty is not None
    advance = _advance(scheduler, sampling, sources)
    channels = _channels(scheduler, sampling, sampler.shape)
    for index, (t, step) in enumerate(zip(scheduler.timesteps, plan_of(scheduler).steps, strict=True)):
        before = x
        inputs = (x.to(sampler.dtype), *(c.to(device) for c in conditions.given))
        if guided and conditions.empty is not None:
            inputs = tuple(
                torch.cat([a, b.to(device)]) for a, b in zip(inputs, (inputs[0], *conditions.empty), strict=True)
            )
        times = t.to(device).expand(len(inputs[0])).contiguous()
        if sampler.time_scale != 1.0:
            times = times * sampler.time_scale
        inputs = (inputs[0], times, *inputs[1:])
        output = denoise(*inputs)
        if output.shape[1] < channels:
            raise ModelError(
                f"the schedule takes the noise's variance from the model ({scheduler.config.variance_type}), but the "
                'model predicts none; set sampling.variance = "fixed-small"'
            )
        output = output[:, :channels].float()
        if guided:
            output = guide(output, sampling.guidance, sampling.guidance_channels or sampler.shape[0])
        x = advance(output, t, step, x)
        yield Moment(index=index, step=step, inputs=inputs, output=output, before=before, after=x)


def guide(output: Tensor, strength: float, channels: int) -> Tensor:
    """e = e_empty + s (e_given - e_empty) on the first channels; the others are e_given's.

    >>> guide(torch.tensor([[3.0, 3.0], [1.0, 1.0]]), 2.0, 1)
    tensor([[5., 3.]])
    """
    given, empty = output.chunk(2)
    first, other = given[:, :channels], empty[:, :channels]
    return torch.cat([other + strength * (first - other), given[:, channels:]], dim=1)


def _noise(shape: Sequence[int], sources: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in sources])


def _channels(scheduler: Any, sampling: Sampling, shape: Sequence[int]) -> int:
    """How many channels of the model's output the scheduler takes: where it takes the variance, twice the image's."""
    learned = sampling.scheduler == "ddpm" and scheduler.config.variance_type in ("learned", "learned_range")
    return shape[0] * (2 if learned else 1)


def _advance(
    scheduler: Any, sampling: Sampling, sources: list[torch.Generator]
) -> Callable[[Tensor, Tensor, Step, Tensor], Tensor]:
    """What takes x from one step to the next, given the model's output."""
    if sampling.scheduler == "ddim":

        def ddim(output: Tensor, t: Tensor, step: Step, x: Tensor) -> Tensor:
            noise = _noise(output.shape[1:], sources).to(output.device) if sampling.eta > 0 else None
            return ddim_step(
                scheduler, output, x, t=int(step.t), t_prev=int(step.t_prev), eta=sampling.eta, noise=noise
            )

        return ddim
    # those that never draw noise have no such option
    extra = {"generator": sources} if "generator" in inspect.signature(scheduler.step).parameters else {}

    def theirs(output: Tensor, t: Tensor, step: Step, x: Tensor) -> Tensor:
        result: Tensor = scheduler.step(output, t, x, return_dict=False, **extra)[0]
        return result

    return theirs
