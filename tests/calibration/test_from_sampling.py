"""Every calibration set against rows taken by hand from whole samplings."""

from __future__ import annotations

import attrs
import pytest
import torch
from qpass_passes.calibration.density_diversity import DensityDiversity
from qpass_passes.calibration.every_step import EveryStep
from qpass_passes.calibration.normal_steps import NormalSteps
from qpass_passes.calibration.uniform_steps import UniformSteps

from qpass.errors import ModelError
from qpass.manager import PassContext
from qpass.model import ModelAdapter
from qpass.sampling import Sampling, trajectory

SETS = [
    DensityDiversity(samples=9, probe=2),
    EveryStep(samples=6, interval=2),
    NormalSteps(samples=6),
    UniformSteps(samples=6, steps=3),
]
every = pytest.mark.parametrize("question", SETS, ids=lambda question: question.name)


def whole(ctx, images):
    """Each image's inputs at each step, from samplings of one image at a time: (step, image) to rows."""
    found = {}
    with torch.no_grad():
        for image in range(images):
            for moment in trajectory(
                ctx.reference, ctx.model.sampler(), ctx.sampling, seed=ctx.seed, stream="calibration",
                indices=[image], device=ctx.device,
            ):  # fmt: skip
                found[moment.index, image] = moment.inputs
    return found


@pytest.fixture(scope="module")
def guided(catalog):
    """A context on the class-conditional DiT, under guidance."""
    from qpass_models.zoo import Cifar10DiT

    from qpass.graph import trace

    adapter = Cifar10DiT()
    return PassContext(
        model=adapter,
        reference=trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic()),
        sampling=Sampling(steps=3, batch=2, guidance=2.0),
        calibration=UniformSteps(),
        catalog=catalog,
    )


@every
def test_rows_are_those_of_the_samplings(question, context):
    """Every row is the input of one image at one of its steps, none is there twice, and steps come in order."""
    samples = question.compute(context.reference, context)
    found = whole(context, 9)
    seen = []
    for x, t in zip(*samples.inputs, strict=True):
        alike = [place for place, (x0, t0) in found.items() if t0[0] == t and torch.allclose(x, x0[0], atol=1e-4)]
        assert len(alike) == 1
        seen += alike
    assert len(set(seen)) == len(seen) == len(samples)
    steps = [step for step, _ in seen]
    assert steps == sorted(steps)


@every
def test_guidance_keeps_both_halves(question, guided):
    """Each row with a class has its twin without one: the same latent, the same timestep, and the empty class."""
    question = attrs.evolve(question, samples=4)
    samples = question.compute(guided.reference, guided)
    x, t, label = samples.inputs
    given, empty = label != 10, label == 10
    assert given.sum() == empty.sum() > 0

    def twins(half):
        return sorted(
            (float(t0), tuple(row.flatten()[:5].tolist())) for row, t0 in zip(x[half], t[half], strict=True)
        )

    assert twins(given) == twins(empty)
    assert label[given].unique().numel() > 1


@every
def test_the_same_seed_the_same_rows(question, context):
    """Twice the same, to the bit; another seed has other images; evaluation's stream is neither."""
    first, again = (question.compute(context.reference, context) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.inputs, again.inputs, strict=True))
    other = question.compute(context.reference, attrs.evolve(context, seed=1))
    assert not torch.equal(first.inputs[0][:4], other.inputs[0][:4])


@every
def test_what_is_stored_is_what_comes_back(question, context):
    """Through named tensors and back, inputs without a batch included."""
    samples = question.compute(context.reference, context)
    back = question.restore(question.dump(samples))
    assert all(torch.equal(a, b) for a, b in zip(samples.inputs, back.inputs, strict=True))
    fixed = attrs.evolve(samples, inputs=(*samples.inputs, torch.arange(3)), unbatched=(2,))
    back = question.restore(question.dump(fixed))
    assert back.unbatched == (2,)
    assert torch.equal(back.inputs[2], torch.arange(3))


@every
def test_a_model_that_cannot_be_sampled_from(question, context):
    """One sentence that names the set and the reason."""

    class Mute(type(context.model)):
        def cannot_sample(self):
            return "it is mute"

    mute = attrs.evolve(context, model=Mute(path=context.model.path))
    assert isinstance(mute.model, ModelAdapter)
    with pytest.raises(ModelError, match=f"calibration '{question.name}' samples from the model, but it is mute"):
        question.compute(context.reference, mute)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (UniformSteps(samples=2, steps=2), [750, 750, 250, 250]),
        (UniformSteps(samples=1, steps=9), [750, 500, 250, 0]),
        (EveryStep(samples=2), [750, 750, 500, 500, 250, 250, 0, 0]),
        (EveryStep(samples=1, interval=3), [750, 0]),
        (EveryStep(samples=1, interval=99), [750]),
    ],
)
def test_steps_by_hand(question, expected, context):
    """Of DDIM's four steps 750, 500, 250, 0."""
    assert question.compute(context.reference, context).t.tolist() == expected


def test_images_that_end_early_are_sampled_no_further(context, monkeypatch):
    """A batch is left at its last wanted step: three rows of the first step cost one call, not four."""
    calls = []
    forward = type(context.reference).forward
    monkeypatch.setattr(
        type(context.reference), "forward", lambda self, *args: (calls.append(1), forward(self, *args))[1]
    )
    samples = EveryStep(samples=3, interval=4).compute(context.reference, context)
    assert len(samples) == 3
    assert len(calls) == 1
