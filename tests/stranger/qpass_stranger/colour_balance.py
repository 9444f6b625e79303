"""How far quantization moves the mean colour of the images a model draws."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
from attrs import validators as v

from qpass import Evaluator, Metric, Observation, PassContext
from qpass.evaluator import Series, Subject

CHANNELS = ("red", "green", "blue")


@attrs.frozen(kw_only=True)
class ColourBalance(Evaluator):
    """Mean red, green and blue of the images a model draws, from 0 to 1, and how far quantization moves them."""

    name = "colour-balance"
    needs = "images"

    images: int = attrs.field(default=64, validator=v.ge(1), metadata={"help": "how many images to draw"})

    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        batches = ctx.model.sample(
            subject.graph, seed=ctx.seed, count=self.images, sampling=ctx.sampling, device=ctx.device
        )
        drawn = np.concatenate([batch.numpy() for batch in batches])
        means = drawn.mean((0, 1, 2)) / 255
        curve = Series(title="mean colour", x=CHANNELS, y=tuple(means), x_label="channel", y_label="mean")
        return Observation(
            numbers=dict(zip(CHANNELS, means, strict=True)),
            series={"mean colour": curve},
            images={"drawn": drawn},
            protocol={"images": self.images, "steps": ctx.sampling.steps, "seed": ctx.seed},
        )

    def score(self, candidate: Observation, reference: Observation | None) -> Sequence[Metric]:
        if reference is None:
            return ()
        shift = max(abs(candidate.numbers[c] - reference.numbers[c]) for c in CHANNELS)
        return (
            Metric(name="colour_shift", value=shift, better="lower", subject="pair", protocol=candidate.protocol),
        )
