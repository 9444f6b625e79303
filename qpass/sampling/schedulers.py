"""The diffusers scheduler of a sampling, on its timesteps, and the plan of steps that follows from it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qpass.errors import RecipeError
from qpass.sampling.options import Sampling
from qpass.schedule import Step, StepPlan

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler-flow": "FlowMatchEulerDiscreteScheduler",
}


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a model's schedule is that of a rectified flow, which predicts a velocity.

    >>> is_flow({"_class_name": "FlowMatchEulerDiscreteScheduler"}), is_flow({"shift": 3.0}), is_flow({})
    (True, True, False)
    """
    named = "FlowMatch" in str(config.get("_class_name", ""))
    return named or "shift" in config or config.get("prediction_type") == "flow_prediction"


def make_scheduler(sampling: Sampling, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler, on its timesteps.

    Beside diffusers' options, `config` may hold `image_tokens`: the length of the sequence that images are to the
    model, on which the timesteps of a flow with `use_dynamic_shifting` depend.
    """
    import diffusers

    _check_family(sampling, config)
    changes = _changes(sampling, config)
    foreign = _foreign(sampling)
    theirs = {key: value for key, value in config.items() if key not in foreign and key not in changes}
    try:
        scheduler = getattr(diffusers, SCHEDULERS[sampling.scheduler]).from_config(theirs, **changes)
    except Exception as error:  # diffusers raises whatever a wrong value happens to lead to
        reason = " ".join(str(error).split())
        raise RecipeError(f"the model's noise schedule cannot be built: {reason}") from error
    known = scheduler.config.num_train_timesteps
    if sampling.steps > known:
        raise RecipeError(f"sampling.steps: at most the model's {known} timesteps, not {sampling.steps}")
    if sampling.scheduler == "euler-flow":
        _set_flow(scheduler, sampling, config)
    elif sampling.spacing in ("uniform", "quadratic"):
        times = spaced(sampling.spacing, sampling.steps, known) + int(scheduler.config.get("steps_offset", 0))
        scheduler.num_inference_steps = sampling.steps  # as set_timesteps leaves it, which refuses repeated ones
        scheduler.timesteps = torch.from_numpy(times)
    else:
        scheduler.set_timesteps(sampling.steps)
    if sampling.scheduler in ("ddim", "ddpm") and (last := int(scheduler.timesteps.max())) >= known:
        raise RecipeError(
            f"sampling.steps: {sampling.steps} steps with the schedule's steps_offset reach timestep {last}, and the "
            f"model's end at {known - 1}; take fewer steps"
        )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def spaced(spacing: str, steps: int, known: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Timesteps as the DDIM release spaces them, last first.

    >>> spaced("uniform", 4, 1000), spaced("quadratic", 4, 1000)
    (array([750, 500, 250,   0]), array([800, 355,  88,   0]))
    """
    if spacing == "uniform":
        return np.arange(steps, dtype=np.int64)[::-1] * known // steps
    return (np.linspace(0, np.sqrt(known * 0.8), steps) ** 2).astype(np.int64)[::-1].copy()


def plain_plan(sampling: Sampling, config: Mapping[str, Any]) -> StepPlan:
    """The steps a sampler takes when no pass has a say."""
    return plan_of(make_scheduler(sampling, config))


def plan_of(scheduler: Any) -> StepPlan:
    """The steps that a scheduler is set to."""
    times = scheduler.timesteps.tolist()  # whole numbers, except for flows and Karras' spacing
    return StepPlan(steps=tuple(Step(t=t, t_prev=p) for t, p in zip(times, [*times[1:], -1], strict=True)))


def _check_family(sampling: Sampling, config: Mapping[str, Any]) -> None:
    """Flows and diffusions are not each other's: their networks predict different things."""
    if is_flow(config) and sampling.scheduler != "euler-flow":
        raise RecipeError(
            f"sampling.scheduler: the model is a rectified flow, and {sampling.scheduler} is for diffusion; "
            'take "euler-flow"'
        )
    if sampling.scheduler == "euler-flow" and not is_flow(config):
        known = ", ".join(name for name in SCHEDULERS if name != "euler-flow")
        raise RecipeError(
            "sampling.scheduler: euler-flow is for rectified flows, and the model's noise schedule "
            f"({config.get('_class_name', 'which names no scheduler')}) is a diffusion's; take one of {known}"
        )
    if not is_flow(config):
        _check_betas(config)


def _check_betas(config: Mapping[str, Any]) -> None:
    """EDM's, consistency and variance-exploding schedules have no betas: taken for DDIM's they would draw noise."""
    import diffusers

    name = str(config.get("_class_name", ""))
    own = inspect.signature(getattr(diffusers, name).__init__).parameters if hasattr(diffusers, name) else ()
    if name and "beta_schedule" not in own and "beta_schedule" not in config:
        raise RecipeError(
            f"sampling.scheduler: the model's noise schedule ({name}) has no beta_schedule, and qpass draws with "
            "schedules of betas and rectified flows only; give the model a schedule that fits how it was trained, as "
            'in model.scheduler = {beta_schedule = "linear"}'
        )


def _changes(sampling: Sampling, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe's options change in the model's schedule."""
    changes: dict[str, Any] = {}
    if sampling.spacing in ("leading", "trailing", "linspace") and sampling.scheduler != "euler-flow":
        changes["timestep_spacing"] = sampling.spacing
    if sampling.order:
        changes["solver_order"] = sampling.order
    if sampling.variance != "model":
        changes["variance_type"] = sampling.variance.replace("-", "_")
    if sampling.clip != "model":
        changes["clip_sample"] = sampling.clip == "always"
        changes["thresholding"] = False  # a clip at a quantile of the image itself
    if sampling.scheduler == "dpm-solver++":
        changes["algorithm_type"] = "dpmsolver++"  # a schedule may name its predecessor
    return changes


def _foreign(sampling: Sampling) -> set[str]:
    """What a schedule may hold for other schedulers than this one, and for our own ends."""
    import diffusers

    taken = {
        name: set(inspect.signature(getattr(diffusers, cls).__init__).parameters)
        for name, cls in SCHEDULERS.items()
    }
    others = {"image_tokens"}.union(*taken.values()) - taken[sampling.scheduler]
    # the loop hands on the model's variance to DDPM alone
    return others if sampling.scheduler == "ddpm" else others | {"variance_type"}


def _set_flow(scheduler: Any, sampling: Sampling, config: Mapping[str, Any]) -> None:
    """Set a flow's noise levels: "trailing" ends at 1/n as Flux does, "linspace" at the least one as SD3 does."""
    spacing = config.get("timestep_spacing", "linspace") if sampling.spacing == "model" else sampling.spacing
    levels = np.linspace(1.0, 1 / sampling.steps, sampling.steps) if spacing == "trailing" else None
    shift = {"mu": _shift(scheduler.config, config)} if scheduler.config.use_dynamic_shifting else {}
    scheduler.set_timesteps(sampling.steps, sigmas=levels, **shift)


def _shift(own: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """mu, linear in the number of image tokens between two known points (SD3, 2403.03206, section 5.3.2)."""
    tokens = config.get("image_tokens")
    if tokens is None:
        raise RecipeError(
            "the model's schedule shifts its timesteps by image size (use_dynamic_shifting), which is not known here; "
            "give the whole pipeline, or set a fixed shift in model.scheduler"
        )
    slope = (own["max_shift"] - own["base_shift"]) / (own["max_image_seq_len"] - own["base_image_seq_len"])
    mu = float(own["base_shift"] + (tokens - own["base_image_seq_len"]) * slope)
    assert math.isfinite(mu)
    return mu
