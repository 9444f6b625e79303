"""LPIPS between what both models draw from the same noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
from attrs import validators as v

from qpass.evaluator import EvaluationError, Metric, Observation, Subject
from qpass.images import DrawnImages, Images, OriginalImages, open_images
from qpass.manager import PassContext
from qpass.measuring import Bench, ImageEvaluator, bench
from qpass.model import ModelAdapter
from qpass_evaluators.feature_evaluator import PIXELS

BATCH = 64


@attrs.frozen(kw_only=True)
class LpipsDistance(ImageEvaluator):
    """Learned perceptual distance, AlexNet, Zhang et al. (2018): image by image, original against quantized.

    lpips: the mean over `samples` pairs drawn from the same noise, uint8, N x H x W x 3, at their own size, scaled to
    [-1, 1]; 0 for equal images. In `qpass measure`, image i of one side is compared with image i of the other.
    """

    name: ClassVar[str] = "lpips"
    metrics: ClassVar[tuple[str, ...]] = ("lpips",)

    samples: int = attrs.field(default=64, validator=v.ge(1), metadata={"help": "images drawn from each model"})
    against: str = attrs.field(
        default="",
        metadata={"help": "images to compare with; in a recipe those of the original, whatever is here"},
    )

    def measure(self, images: Images, bench: Bench) -> Sequence[Metric]:
        if not self.against:
            raise EvaluationError("lpips compares image by image; say with which images, as the option `against`")
        others = open_images(self.against, bench.progress.say)
        metric, digest = self.pairs(images, others, bench)
        compared = {
            "reference": others.name,
            "reference_images": len(others),
            "reference_size": metric.protocol["size"],
            "reference_hash": digest,
        }
        return (attrs.evolve(metric, protocol={**metric.protocol, **compared}),)

    def requires(self, model: ModelAdapter) -> None:
        from qpass_evaluators.networks.lpips import Lpips

        if size := model.sampler().size:
            Lpips().check_size(*size)

    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        """Of the original alone there is nothing to see."""
        if subject.role == "original":
            return Observation()
        originals = ctx.get(OriginalImages(count=self.samples), ctx.reference)
        images = ctx.get(DrawnImages(count=self.samples), subject.graph)
        metric, _ = self.pairs(images, originals, bench(ctx))  # how both are drawn is in the protocol already
        return self.seen((metric,))

    def subject(self, role: str) -> str:
        return "pair"

    def pairs(self, images: Images, others: Images, bench: Bench) -> tuple[Metric, str]:
        """The mean distance of images of the same number, and a hash of the others' pixels."""
        from qpass_evaluators.networks.lpips import Lpips

        if len(images) != len(others):
            raise EvaluationError(
                f"lpips compares image by image, but there are {len(images)} of {images.name} and {len(others)} of "
                f"{others.name}; give as many of both"
            )
        network = Lpips()
        found, pixels = [], hashlib.sha256()
        with bench.progress.task("lpips", len(images)) as task:
            for one, other in zip(images.batches(BATCH), others.batches(BATCH), strict=True):
                if one.shape != other.shape:
                    sizes = [f"{batch.shape[1]} x {batch.shape[2]}" for batch in (one, other)]
                    raise EvaluationError(
                        f"lpips: images of {sizes[0]} cannot be compared with images of {sizes[1]}"
                    )
                found.append(network.distance(one, other, bench.device).double().cpu())
                pixels.update(other.tobytes())
                task.advance(len(one))
        size = f"{one.shape[1]}x{one.shape[2]}"
        protocol = {**network.protocol(), **images.protocol(), "pixels": PIXELS, "size": size}
        value = float(torch.cat(found).mean())
        metric = Metric(name="lpips", value=value, better="lower", subject="pair", protocol=protocol)
        return metric, pixels.hexdigest()[:16]
