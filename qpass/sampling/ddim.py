"""DDIM's step from any timestep to any earlier one (2010.02502, equations 12 and 16).

diffusers' own `DDIMScheduler.step` takes t - T // n for the timestep to go to, which is not the next one where the
timesteps are unevenly spaced. This is its arithmetic, in its order, with that timestep handed in.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def ddim_step(
    scheduler: Any, output: Tensor, x: Tensor, *, t: int, t_prev: int, eta: float, noise: Tensor | None
) -> Tensor:
    """x at `t_prev` (-1 is the clean image) from x and the model's output at `t`; `noise` where eta > 0."""
    a = scheduler.alphas_cumprod[t]
    a_prev = scheduler.alphas_cumprod[t_prev] if t_prev >= 0 else scheduler.final_alpha_cumprod
    x0, e = predicted(scheduler.config.prediction_type, output, x, a)
    if scheduler.config.thresholding:
        x0 = scheduler._threshold_sample(x0)
    elif scheduler.config.clip_sample:
        x0 = x0.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    variance = (1 - a_prev) / (1 - a) * (1 - a / a_prev)
    sigma = eta * variance**0.5
    # at eta 1 from zero signal the difference is 0, and rounding may put it below, where diffusers' image is NaN
    mean: Tensor = a_prev**0.5 * x0 + (1 - a_prev - sigma**2).clamp(min=0) ** 0.5 * e
    return mean if noise is None else mean + sigma * noise


def predicted(kind: str, output: Tensor, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The clean image and the noise that the output stands for; `a` is the cumulated alpha at t."""
    b = 1 - a
    if kind == "sample":
        return output, (x - a**0.5 * output) / b**0.5
    if kind == "v_prediction":
        return a**0.5 * x - b**0.5 * output, a**0.5 * output + b**0.5 * x
    return (x - b**0.5 * output) / a**0.5, output
