"""How far the quantized model drifts from its teacher: images from the same noise, and noise node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs
from attrs import validators as v

from qpass.evaluator import Evaluator, Metric, Observation, Series, Subject
from qpass.images.drawn import facts
from qpass.manager import PassContext
from qpass_evaluators.clipped import clipped
from qpass_evaluators.images import GraphImages, ReferenceImages
from qpass_evaluators.noise import OUTPUT, NoiseTable, measure
from qpass_evaluators.similarity import psnr, ssim, window

WORST = 4  # nodes whose SQNR is also shown by timestep


@attrs.frozen(kw_only=True)
class Drift(Evaluator):
    """SQNR, PSNR and SSIM of the quantized model against its full-precision teacher.

    sqnr: 10 log10(Σ s² / Σ (s - q)²) dB, s the noise that the teacher predicts (B x C x H x W) and q the quantized
    model's prediction for the same input; inputs are those of the teacher's own sampling of `rows` images.
    psnr, ssim: between `samples` images that both models draw from the same noise, uint8, N x H x W x 3; see
    `qpass_evaluators.similarity`.
    clipped: where the sampler clips the predicted image, the share of its values that the first step would clip, of
    both models. Far more than the original's means that images lose their colours there; see `sampling.clip`.
    """

    name: ClassVar[str] = "drift"
    needs: ClassVar[Literal["images", "model"]] = "images"
    samples: int = attrs.field(
        default=64, validator=v.ge(1), metadata={"help": "images drawn by both models for PSNR and SSIM"}
    )
    rows: int = attrs.field(
        default=16, validator=v.ge(1), metadata={"help": "images whose trajectory is followed for SQNR"}
    )

    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        """The images and, of a quantized model, its noise."""
        if subject.role == "original":
            images = ctx.get(ReferenceImages(count=self.samples), subject.graph)
        else:
            images = ctx.get(GraphImages(count=self.samples), subject.graph)
        share = clipped(subject.graph, ctx, self.rows)
        numbers = {} if share is None else {"clipped": 100 * share}
        seen = Observation(numbers=numbers, images={"samples": images}, protocol=facts(ctx.sampling, ctx.seed))
        if subject.role == "original":
            return seen
        table = measure(subject.graph, ctx, self.rows)
        return seen.merge(Observation(numbers={"sqnr": table.pooled(OUTPUT).sqnr}, series=curves(table)))

    def score(self, candidate: Observation, reference: Observation | None) -> Sequence[Metric]:
        protocol = candidate.protocol
        called = _as_called(protocol)
        metrics = []
        if "sqnr" in candidate.numbers:
            metrics.append(self._pair("sqnr", candidate.numbers["sqnr"], "dB", {**called, "rows": self.rows}))
        if reference is not None:
            ours, theirs = candidate.images["samples"], reference.images["samples"]
            protocol = {**protocol, "images": len(ours)}
            pooled = {**protocol, "mse": "mean over all images"}
            metrics.append(self._pair("psnr", psnr(theirs, ours), "dB", pooled))
            side = window(ours.shape[1], ours.shape[2])
            how = {**protocol, "window": f"gaussian {side}, sigma 1.5, valid region, mean over channels"}
            metrics.append(self._pair("ssim", float(ssim(theirs, ours).mean()), "", how))
        for seen in filter(None, (reference, candidate)):
            if "clipped" in seen.numbers:
                metrics.append(self._clipped(seen, "quantized" if seen is candidate else "original"))
        return tuple(metrics)

    def _pair(self, name: str, value: float, unit: str, protocol: dict[str, Any]) -> Metric:
        return Metric(name=name, value=value, unit=unit, subject="pair", protocol=protocol)

    def _clipped(self, seen: Observation, subject: Literal["original", "quantized"]) -> Metric:
        protocol = {**_as_called(seen.protocol), "rows": self.rows, "step": "first"}
        return Metric(
            name="clipped",
            value=seen.numbers["clipped"],
            unit="%",
            better="lower",
            subject=subject,
            protocol=protocol,
        )


def _as_called(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of what is measured on the models' outputs: they are called as they are.

    To compile them, or to multiply in bf16, is for drawing images alone.
    """
    return {key: value for key, value in protocol.items() if key not in ("compiled", "precision")}


def curves(table: NoiseTable) -> dict[str, Series]:
    """SQNR of the output by timestep, of each node over all steps, and of the worst nodes by timestep."""
    pooled = {origin: table.pooled(origin).sqnr for origin in table.cells if origin != OUTPUT}
    worst = sorted(pooled, key=pooled.__getitem__)[:WORST]
    by_node = Series(
        title="sqnr by node",
        x=tuple(pooled),
        y=tuple(pooled.values()),
        x_label="node",
        y_label="SQNR (dB)",
    )
    by_time = {
        title: Series(
            title=title,
            x=table.times,
            y=tuple(power.sqnr for power in table.cells[origin]),
            x_label="timestep",
            y_label="SQNR (dB)",
        )
        for title, origin in {
            "sqnr by timestep": OUTPUT,
            **{f"sqnr by timestep: {origin}": origin for origin in worst},
        }.items()
    }
    return {by_node.title: by_node, **by_time}
