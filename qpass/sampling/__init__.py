"""Draw images: noise, one scheduler of diffusers, and any denoiser called as `denoise(x, t, *cond)`."""

from __future__ import annotations

from qpass.sampling.loop import (
    Conditions,
    Denoise,
    Moment,
    Sampler,
    generator,
    to_uint8,
    trajectory,
)
from qpass.sampling.options import Sampling, check_guidance
from qpass.sampling.schedulers import make_scheduler, plain_plan

__all__ = [
    "Conditions",
    "Denoise",
    "Moment",
    "Sampler",
    "Sampling",
    "check_guidance",
    "generator",
    "make_scheduler",
    "plain_plan",
    "to_uint8",
    "trajectory",
]
