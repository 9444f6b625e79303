"""Sampling against the DDIM formula, and its promises about noise."""

from __future__ import annotations

import pytest
import torch

from qpass.errors import RecipeError
from qpass.model import ModelAdapter
from qpass.sampling import Conditions, Sampler, Sampling, generator, plain_plan, to_uint8, trajectory

CONFIG = {"num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": False, "set_alpha_to_one": True}


def denoise(x, t, *cond):
    """A made-up denoiser that depends on every input."""
    shift = sum((c.float().reshape(-1, 1, 1, 1) for c in cond), torch.zeros(1))
    return torch.sin(x) * (1 + t.float().reshape(-1, 1, 1, 1) / 1000) + 0.01 * shift


def run(sampling, indices, sampler=None, seed=0):
    sampler = sampler or Sampler(shape=(2, 4, 4), scheduler_config=CONFIG)
    return list(
        trajectory(denoise, sampler, sampling, seed=seed, stream="s", indices=indices, device=torch.device("cpu"))
    )


def test_equals_the_ddim_formula():
    """Ten steps at eta 0, worked in float64:

    x' = sqrt(a') x0 + sqrt(1 - a') e, x0 = (x - sqrt(1 - a) e) / sqrt(a).
    """
    moments = run(Sampling(steps=10), range(3))
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x = moments[0].before.double()
    for k, t in enumerate(range(900, -1, -100)):
        assert (moments[k].step.t, moments[k].step.t_prev) == (t, t - 100 if t else -1)
        e = denoise(x, torch.full((3,), t))
        a, before = alphas[t], alphas[t - 100] if t else torch.tensor(1.0, dtype=torch.float64)
        x = before.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - before).sqrt() * e
        assert torch.allclose(moments[k].after.double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "sampling", [Sampling(steps=5), Sampling(steps=5, eta=1.0), Sampling(scheduler="ddpm", steps=5)]
)
def test_an_image_depends_on_seed_and_index_alone(sampling):
    """Image 5 is the same whether it is drawn alone or among others, with fresh noise at every step or none."""
    among, alone = run(sampling, range(3, 8))[-1].after[2], run(sampling, [5])[-1].after[0]
    assert torch.allclose(among, alone, atol=1e-5)
    assert not torch.allclose(among, run(sampling, [6])[-1].after[0], atol=1e-2)
    assert not torch.allclose(among, run(sampling, [5], seed=1)[-1].after[0], atol=1e-2)


def test_streams_of_noise_are_apart():
    """Calibration and evaluation never share an image's noise."""
    a, b = (torch.randn(4, generator=generator(0, stream, 0)) for stream in ("calibration", "evaluation"))
    assert not torch.equal(a, b)


def test_guidance_by_hand():
    """e = e_empty + w (e_given - e_empty), from one call on both halves; at w = 1 one half is called."""
    conditions = lambda indices, sampling: Conditions(  # noqa: E731
        given=(torch.tensor([float(i) for i in indices]),), empty=(torch.full((len(indices),), 9.0),)
    )
    sampler = Sampler(shape=(2, 4, 4), scheduler_config=CONFIG, conditions=conditions)
    guided = run(Sampling(steps=1, guidance=3.0), [1, 2], sampler)[0]
    assert guided.inputs[0].shape[0] == 4
    assert guided.inputs[2].tolist() == [1.0, 2.0, 9.0, 9.0]
    plain = run(Sampling(steps=1), [1, 2], sampler)[0]
    assert plain.inputs[2].tolist() == [1.0, 2.0]
    given, empty = (denoise(*(part[h] for part in guided.inputs)) for h in (slice(0, 2), slice(2, 4)))
    e = empty + 3.0 * (given - empty)
    a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[0]
    assert torch.allclose(guided.after, (guided.before - (1 - a).sqrt() * e) / a.sqrt(), atol=1e-4)


def test_rounding_to_uint8():
    """Nearest, not down: 0.999 of full scale is 255, and what is outside is clipped."""
    x = torch.tensor([-3.0, -1.0, 0.9979, 3.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_uint8(x)[0, :, :, 0].flatten().tolist() == [0, 0, 255, 255]


def test_too_many_steps_is_one_error():
    """More steps than the model was trained on cannot be scheduled."""
    with pytest.raises(RecipeError, match="at most the model's 1000 timesteps, not 1001"):
        plain_plan(Sampling(steps=1001), CONFIG)


def test_a_model_that_cannot_sample_says_why(traced):
    """The refusal carries the adapter's own reason."""
    assert ModelAdapter.cannot_sample(traced[0]) == "model 'diffusers' does not say how images are drawn from it"


def test_products_in_bfloat16_draw_nearly_the_same_images(traced):
    """The difference is bf16's rounding: there, and within a few of 255 levels on average."""
    adapter, graph = traced
    plain, cast = (drawn(adapter, graph, Sampling(steps=3, precision=name)) for name in ("model", "bfloat16"))
    apart = (plain - cast).abs().float()
    assert 0 < apart.mean() < 3


@pytest.mark.slow
def test_a_compiled_model_draws_the_same_images(traced):
    """Up to rounding: at most one value in a thousand of two batches and a shorter one differs, by one level."""
    adapter, graph = traced
    plain, compiled = (drawn(adapter, graph, Sampling(steps=3, batch=2, compiled=c)) for c in (False, True))
    apart = (plain - compiled).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3


def drawn(adapter, graph, sampling):
    """Five images."""
    images = adapter.sample(graph, seed=0, count=5, sampling=sampling, device=torch.device("cpu"))
    return torch.cat(list(images)).int()
