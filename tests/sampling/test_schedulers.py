"""Each scheduler against diffusers' own loop, and what goes with what."""

from __future__ import annotations

import diffusers
import pytest
import torch

from qpass.errors import ModelError, RecipeError
from qpass.sampling import Conditions, Sampler, Sampling, generator, make_scheduler, plain_plan, trajectory
from qpass.sampling.schedulers import SCHEDULERS

CONFIG = {"num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": False}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DYNAMIC = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
SHAPE = (2, 4, 4)


def denoise(x, t, *cond):
    """A made-up denoiser that depends on every input."""
    return torch.sin(3 * x) * (1 + t.float().reshape(-1, 1, 1, 1) / 1000)


def with_variance(x, t, *cond):
    """One that also predicts where between its bounds the variance lies."""
    return torch.cat([denoise(x, t), torch.cos(x)], dim=1)


def run(sampling, config, model=denoise, **options):
    sampler = Sampler(shape=SHAPE, scheduler_config=config, **options)
    return list(
        trajectory(model, sampler, sampling, seed=0, stream="s", indices=range(3), device=torch.device("cpu"))
    )


def reference(scheduler, model=denoise, stochastic=False):
    """The loop of diffusers' pipelines."""
    sources = [generator(0, "s", i) for i in range(3)]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in sources])
    extra = {"generator": sources} if stochastic else {}
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(3)), t, x, return_dict=False, **extra)[0]
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("name", "order"),
    [("ddpm", 0), ("dpm-solver++", 0), ("dpm-solver++", 1), ("dpm-solver++", 3), ("unipc", 0), ("unipc", 3)],
)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_equals_diffusers(name, order, spacing, kind):
    """Its own scheduler, set alike, gives the same bits over a whole sampling."""
    options = {"solver_order": order} if order else {}
    scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(
        CONFIG, timestep_spacing=spacing, prediction_type=kind, **options
    )
    scheduler.set_timesteps(12)
    moments = run(
        Sampling(scheduler=name, steps=12, spacing=spacing, order=order), {**CONFIG, "prediction_type": kind}
    )
    assert [m.step.t for m in moments] == scheduler.timesteps.tolist()
    assert [m.step.t_prev for m in moments] == [*scheduler.timesteps.tolist()[1:], -1]
    assert torch.equal(moments[-1].after, reference(scheduler, stochastic=name == "ddpm"))


def test_solvers_keep_their_state_to_themselves():
    """Two samplings taken in turns give what each gives alone: no scheduler is shared."""
    sampling = Sampling(scheduler="unipc", steps=6)
    sampler = Sampler(shape=SHAPE, scheduler_config=CONFIG)
    cpu = torch.device("cpu")
    one, two = (
        trajectory(denoise, sampler, sampling, seed=0, stream="s", indices=[i], device=cpu) for i in (0, 1)
    )
    turns = list(zip(one, two, strict=True))
    alone = list(trajectory(denoise, sampler, sampling, seed=0, stream="s", indices=[1], device=cpu))
    assert torch.equal(turns[-1][1].after, alone[-1].after)


def test_ddpm_is_ddim_at_eta_1():
    """Both formulas, from different papers, give the same mean and the same noise at every step."""
    ddpm = run(Sampling(scheduler="ddpm", steps=10, spacing="uniform"), CONFIG)
    ddim = run(Sampling(steps=10, spacing="uniform", eta=1.0), CONFIG)
    for a, b in zip(ddpm[:-1], ddim[:-1], strict=True):
        torch.testing.assert_close(a.after, b.after, rtol=1e-3, atol=1e-3)


def test_learned_range_by_hand():
    """sigma² = exp(v log beta + (1 - v) log beta~), 2102.09672 equation 15, with the model's own v in [-1, 1]."""
    moments = run(
        Sampling(scheduler="ddpm", steps=5, variance="learned-range", spacing="linspace"), CONFIG, with_variance
    )
    cumulated = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = [999, 749, 500, 250, 0]
    sources = [generator(0, "s", i) for i in range(3)]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in sources]).double()
    for moment, t, before in zip(moments, times, [*times[1:], -1], strict=True):
        e, raw = with_variance(x.float(), torch.full((3,), t)).double().chunk(2, dim=1)
        a, a_prev = cumulated[t], cumulated[before] if before >= 0 else torch.tensor(1.0, dtype=torch.float64)
        beta = 1 - a / a_prev
        lower, v = beta * (1 - a_prev) / (1 - a), (raw + 1) / 2
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x = a_prev.sqrt() * beta / (1 - a) * x0 + (1 - beta).sqrt() * (1 - a_prev) / (1 - a) * x
        if t > 0:
            noise = torch.stack([torch.randn(SHAPE, generator=g) for g in sources]).double()
            x = x + torch.exp(0.5 * (v * beta.log() + (1 - v) * lower.log())) * noise
        torch.testing.assert_close(moment.after.double(), x, rtol=1e-4, atol=1e-3)
        x = moment.after.double()


def test_a_variance_nobody_asked_for_is_dropped():
    """A model that predicts one draws the same without it, whatever the scheduler."""
    for name in ("ddim", "ddpm", "dpm-solver++", "unipc"):
        for extra in ({}, {"variance_type": "learned_range"}):
            if name == "ddpm" and extra:
                continue
            sampling = Sampling(scheduler=name, steps=4)
            ours, plain = run(sampling, {**CONFIG, **extra}, with_variance), run(sampling, CONFIG)
            assert torch.equal(ours[-1].after, plain[-1].after)


def test_a_variance_that_is_not_there():
    """The schedule wants it, the model has none: one sentence with the way out."""
    with pytest.raises(ModelError, match=r'set sampling\.variance = "fixed-small"'):
        run(Sampling(scheduler="ddpm", steps=2), {**CONFIG, "variance_type": "learned_range"})


def test_guidance_on_the_first_channels_leaves_the_others():
    """The DiT release guides three of four channels; the fourth, and the variance, are the condition's."""

    def conditions(indices, sampling):
        labels = torch.tensor([float(i) for i in indices])
        return Conditions(given=(labels,), empty=(torch.full_like(labels, 9.0),))

    def model(x, t, label):
        return with_variance(x, t) + label.reshape(-1, 1, 1, 1)

    sampling = Sampling(
        scheduler="ddpm", steps=2, guidance=3.0, guidance_channels=1, variance="learned-range", spacing="trailing"
    )
    first = run(sampling, CONFIG, model, conditions=conditions)[0]
    given, empty = (model(*(part[h] for part in first.inputs)) for h in (slice(0, 3), slice(3, 6)))
    expected = torch.cat([empty[:, :1] + 3.0 * (given[:, :1] - empty[:, :1]), given[:, 1:]], dim=1)
    scheduler = make_scheduler(sampling, CONFIG)
    sources = [generator(0, "s", i) for i in range(3)]
    for g in sources:
        torch.randn(SHAPE, generator=g)
    by_hand = scheduler.step(expected, scheduler.timesteps[0], first.before, generator=sources).prev_sample
    torch.testing.assert_close(first.after, by_hand)


@pytest.mark.parametrize(("shift", "spacing"), [(1.0, "linspace"), (3.0, "linspace"), (1.0, "trailing")])
def test_euler_on_a_rectified_flow_by_hand(shift, spacing):
    """x' = x + (s' - s) v along noise levels shifted by s -> c s / (1 + (c - 1) s), ending at 0."""
    config = {**FLOW, "shift": shift}
    moments = run(Sampling(scheduler="euler-flow", steps=5, spacing=spacing), config)
    low = 1 / 5 if spacing == "trailing" else shift * 1e-3 / (1 + (shift - 1) * 1e-3)
    levels = torch.linspace(1, low, 5, dtype=torch.float64)
    levels = torch.cat([shift * levels / (1 + (shift - 1) * levels), torch.zeros(1, dtype=torch.float64)])
    sources = [generator(0, "s", i) for i in range(3)]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in sources]).double()
    for moment, now, then in zip(moments, levels[:-1], levels[1:], strict=True):
        assert moment.step.t == pytest.approx(1000 * float(now), abs=1e-3)
        x = x + (then - now) * denoise(x, (1000 * now).expand(3))
        torch.testing.assert_close(moment.after.double(), x, rtol=1e-4, atol=1e-4)
    assert moments[-1].step.t_prev == -1


def test_a_shift_by_image_size():
    """SD3.5's and Flux's: mu is 0.5 at 256 tokens and 1.15 at 4096, and t -> 1 / (1 + exp(-mu) (1/t - 1))."""
    plan = plain_plan(
        Sampling(scheduler="euler-flow", steps=4, spacing="trailing"), {**DYNAMIC, "image_tokens": 4096}
    )
    shift = torch.tensor(1.15).exp()
    for step, level in zip(plan.steps, (1.0, 0.75, 0.5, 0.25), strict=True):
        assert step.t == pytest.approx(1000 * float(shift / (shift + 1 / level - 1)), rel=1e-5)
    with pytest.raises(RecipeError, match="shifts its timesteps by image size"):
        plain_plan(Sampling(scheduler="euler-flow"), DYNAMIC)


def test_the_denoiser_may_count_time_otherwise():
    """Flux is given t / 1000; the plan stays in the scheduler's timesteps."""
    moment = run(Sampling(scheduler="euler-flow", steps=2), FLOW, time_scale=1e-3)[0]
    assert (moment.step.t, moment.inputs[1].tolist()) == (1000.0, [1.0] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "dpm-solver++", "spacing": "quadratic"}, "spacing 'quadratic' is not for dpm-solver"),
        ({"scheduler": "ddpm", "spacing": "quadratic"}, "spacing 'quadratic' is not for ddpm"),
        ({"scheduler": "euler-flow", "spacing": "leading"}, "spacing 'leading' is not for euler-flow"),
        ({"scheduler": "unipc", "eta": 0.5}, "eta is for ddim, not for unipc"),
        ({"scheduler": "ddpm", "eta": 1.0}, "eta is for ddim, not for ddpm"),
        ({"scheduler": "ddim", "order": 2}, r"order is for dpm-solver\+\+ and unipc, not for ddim"),
        ({"variance": "learned-range"}, "variance is for ddpm, not for ddim"),
        ({"scheduler": "unipc", "clip": "never"}, "clip is for ddim and ddpm, not for unipc"),
    ],
)
def test_what_makes_no_sense_together(options, message):
    """Said before any model is looked at."""
    with pytest.raises(RecipeError, match=message):
        Sampling(**options)


def test_flows_and_diffusions_are_told_apart():
    """A network that predicts a velocity is not sampled as if it predicted noise, nor the other way round."""
    with pytest.raises(
        RecipeError, match=r'the model is a rectified flow, and ddim is for diffusion; take "euler'
    ):
        make_scheduler(Sampling(), FLOW)
    with pytest.raises(RecipeError, match=r"euler-flow is for rectified flows, .* \(DDIMScheduler\) is a diff"):
        make_scheduler(Sampling(scheduler="euler-flow"), {**CONFIG, "_class_name": "DDIMScheduler"})


def test_an_offset_that_leaves_the_schedule():
    """As many steps as timesteps, each moved up by one, would ask for one the model does not have."""
    with pytest.raises(RecipeError, match="reach timestep 1000, and the model's end at 999"):
        make_scheduler(Sampling(steps=1000), {**CONFIG, "steps_offset": 1})


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(steps=12, eta=1.0),
        Sampling(steps=12, eta=0.5, spacing="quadratic"),
        Sampling(scheduler="ddpm", steps=12),
        Sampling(scheduler="ddpm", steps=12, variance="fixed-large", spacing="trailing"),
        Sampling(scheduler="dpm-solver++", steps=12),
        Sampling(scheduler="unipc", steps=12),
    ],
    ids=lambda s: f"{s.scheduler}-{s.spacing}-{s.eta}",
)
def test_images_do_not_depend_on_their_batch(traced, sampling):
    """Drawn 1, 3 or 8 at a time by a real UNet, at most 0.1 % of the values differ, by one; at equal size, none."""
    adapter, graph = traced

    def draw(batch, count=8):
        import attrs

        with torch.no_grad():
            images = adapter.sample(
                graph,
                seed=5,
                count=count,
                sampling=attrs.evolve(sampling, batch=batch),
                device=torch.device("cpu"),
            )
            return torch.cat(list(images)).int()

    whole = draw(8)
    assert torch.equal(whole, draw(8))
    assert torch.equal(draw(3, 6), draw(3)[:6])
    for batch in (1, 3):
        difference = (draw(batch) - whole).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() <= 1e-3


@pytest.mark.parametrize("kind", ["EDMEuler", "EDMDPMSolverMultistep", "CMStochasticIterative", "ScoreSdeVe"])
def test_schedules_without_betas_are_refused(kind):
    """DDIM would take its own defaults for everything they say, and draw noise."""
    name = f"{kind}Scheduler"
    config = {"_class_name": name, **getattr(diffusers, name)().config}
    with pytest.raises(RecipeError, match=rf"noise schedule \({name}\) has no beta_schedule"):
        make_scheduler(Sampling(steps=4), config)
