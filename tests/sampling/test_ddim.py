"""DDIM between any two timesteps: against the paper's formula, written out, and against diffusers where it is right."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from qpass.sampling import Sampler, Sampling, generator, make_scheduler, plain_plan, trajectory

CONFIG = {"num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": False, "set_alpha_to_one": True}
SHAPE = (2, 4, 4)


def denoise(x, t, *cond):
    """A made-up denoiser that depends on every input."""
    return torch.sin(3 * x) * (1 + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)


def run(sampling, config=CONFIG, count=3):
    sampler = Sampler(shape=SHAPE, scheduler_config=config)
    return list(
        trajectory(
            denoise, sampler, sampling, seed=0, stream="s", indices=range(count), device=torch.device("cpu")
        )
    )


def quadratic(steps, offset=0):
    """The DDIM release's `quad`, in its own order of operations."""
    return [int(s) + offset for s in np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2][::-1]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("uniform", list(range(900, -1, -100))),
        ("quadratic", quadratic(10)),
        ("linspace", [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    ],
)
def test_equals_equation_12(spacing, times, eta):
    """x' = sqrt(a') (x - sqrt(1-a) e) / sqrt(a) + sqrt(1 - a' - s²) e + s n, with s of equation 16, in float64."""
    moments = run(Sampling(steps=10, spacing=spacing, eta=eta))
    assert [m.step.t for m in moments] == times
    assert [m.step.t_prev for m in moments] == [*times[1:], -1]
    cumulated = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    sources = [generator(0, "s", i) for i in range(3)]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in sources]).double()
    for moment, t, before in zip(moments, times, [*times[1:], -1], strict=True):
        e = denoise(x, torch.full((3,), t))
        a, a_prev = cumulated[t], cumulated[before] if before >= 0 else torch.tensor(1.0, dtype=torch.float64)
        s = eta * ((1 - a_prev) / (1 - a)).sqrt() * (1 - a / a_prev).sqrt()
        x = a_prev.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - a_prev - s**2).sqrt() * e
        if eta:
            x = x + s * torch.stack([torch.randn(SHAPE, generator=g) for g in sources]).double()
        torch.testing.assert_close(moment.after.double(), x, rtol=1e-4, atol=1e-4)
        x = moment.after.double()


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
    ids=lambda extra: "-".join(extra) or "plain",
)
def test_equals_diffusers_to_the_bit(kind, extra, eta):
    """Where diffusers' t - T // n is the next timestep, its DDIMScheduler gives the same bits."""
    if extra.get("rescale_betas_zero_snr") and kind == "epsilon":
        pytest.skip("at zero signal the noise says nothing of the image: 0 / 0")
    config = {**CONFIG, **extra, "prediction_type": kind}
    scheduler = diffusers.DDIMScheduler.from_config(config)
    scheduler.set_timesteps(10)
    sources = [generator(0, "s", i) for i in range(3)]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in sources])
    moments = run(Sampling(steps=10, eta=eta), config)
    assert [m.step.t for m in moments] == scheduler.timesteps.tolist()
    for moment, t in zip(moments, scheduler.timesteps, strict=True):
        e = denoise(x, t.expand(3))
        x = scheduler.step(e, t, x, eta=eta, generator=sources, return_dict=False)[0]
        assert torch.isfinite(moment.after).all()
        if torch.isnan(x).any():  # diffusers took the root of a number that rounding put below 0
            assert eta == 1
            assert extra.get("rescale_betas_zero_snr")
            x = moment.after
        assert torch.equal(moment.after, x)


@pytest.mark.parametrize(("clip", "kept"), [("always", True), ("never", False)])
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_clipping_whatever_the_schedule_says(scheduler, clip, kept):
    """The same bits as by a schedule that says so itself; other bits than by the one that says the opposite."""
    own = run(Sampling(scheduler=scheduler, steps=5), {**CONFIG, "clip_sample": kept})[-1].after
    for config in ({"clip_sample": not kept}, {"clip_sample": kept}, {"thresholding": True}):
        found = run(Sampling(scheduler=scheduler, steps=5, clip=clip), {**CONFIG, **config})[-1].after
        assert torch.equal(found, own)
    other = run(Sampling(scheduler=scheduler, steps=5), {**CONFIG, "clip_sample": not kept})[-1].after
    assert not torch.equal(other, own)


def test_uniform_is_the_releases_own():
    """range(0, T, T // n), plus the LDM release's one, where n divides T; otherwise still n steps over all of T."""
    ldm = {**CONFIG, "steps_offset": 1, "set_alpha_to_one": False}
    for steps in (20, 50, 100, 200, 500):
        expected = [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
        assert [s.t for s in plain_plan(Sampling(steps=steps, spacing="uniform"), ldm).steps] == expected
    times = [s.t for s in plain_plan(Sampling(steps=400, spacing="uniform"), CONFIG).steps]
    assert (len(times), len(set(times)), times[0], times[-1]) == (400, 400, 997, 0)


def test_quadratic_is_the_releases_own():
    """All 100 steps of the DDIM release, four of them at t = 0; its repeated steps leave x as it is."""
    plan = plain_plan(Sampling(steps=100, spacing="quadratic"), CONFIG)
    assert [s.t for s in plan.steps] == quadratic(100)
    assert [s.t for s in plan.steps][:3] == [800, 783, 768]
    assert [s.t for s in plan.steps][-5:] == [1, 0, 0, 0, 0]
    offset = plain_plan(Sampling(steps=100, spacing="quadratic"), {**CONFIG, "steps_offset": 1})
    assert [s.t for s in offset.steps] == quadratic(100, 1)
    for moment in run(Sampling(steps=100, spacing="quadratic", eta=1.0)):
        if moment.step.t == moment.step.t_prev:
            torch.testing.assert_close(moment.before, moment.after, rtol=1e-5, atol=1e-5)


def test_diffusers_own_step_would_miss():
    """Why the step is ours: diffusers goes to t - T // n, which on quadratic timesteps is another place."""
    scheduler = make_scheduler(Sampling(steps=10, spacing="quadratic"), CONFIG)
    first = run(Sampling(steps=10, spacing="quadratic"))[0]
    theirs = scheduler.step(denoise(first.before, torch.full((3,), 800)), 800, first.before).prev_sample
    assert (theirs - first.after).abs().max() > 0.01
