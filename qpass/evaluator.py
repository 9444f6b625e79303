"""The contract of an evaluator: look at one model, then compare what was seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs
import numpy as np
import torch
from torch.fx import GraphModule

from qpass.errors import QpassError

if TYPE_CHECKING:
    from qpass.manager import PassContext
    from qpass.model import ModelAdapter

Role = Literal["original", "quantized"]


class EvaluationError(QpassError):
    """An evaluator was asked for something this model or machine cannot give."""


@attrs.frozen(kw_only=True)
class Metric:
    """One number of the report. `protocol` holds whatever determines it; unlike protocols never compare."""

    name: str
    value: float
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    subject: Literal["original", "quantized", "pair", "images"] = "quantized"
    protocol: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Series:
    """A curve for the report: `y` over `x`, where `x` may be numbers (timesteps) or names (nodes)."""

    title: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    x_label: str = ""
    y_label: str = ""


@attrs.frozen(kw_only=True, eq=False)
class Observation:
    """What an evaluator saw of one model: numbers, curves and images (uint8, N x H x W x 3), never the model.

    `protocol` is what determined them; `score` hands it on to the metrics.
    """

    numbers: Mapping[str, float] = attrs.field(factory=dict)
    series: Mapping[str, Series] = attrs.field(factory=dict)
    images: Mapping[str, np.ndarray[Any, Any]] = attrs.field(factory=dict)
    protocol: Mapping[str, Any] = attrs.field(factory=dict)

    def merge(self, other: Observation) -> Observation:
        """Both observations as one; images of one name are joined in order."""
        images = dict(self.images)
        for name, batch in other.images.items():
            images[name] = np.concatenate([images[name], batch]) if name in images else batch
        return Observation(
            numbers={**self.numbers, **other.numbers},
            series={**self.series, **other.series},
            images=images,
            protocol={**self.protocol, **other.protocol},
        )


@attrs.frozen(kw_only=True, eq=False)
class Subject:
    """The model under observation; `folder` is its artifact on disk where it has one."""

    role: Role
    graph: GraphModule
    folder: Path | None = None


class Evaluator(ABC):
    """Measures a model. Subclasses are `@attrs.frozen(kw_only=True)`; their fields are the recipe's options."""

    name: ClassVar[str]
    needs: ClassVar[Literal["images", "model"]] = "model"  # "images": the model must be able to sample
    exact: ClassVar[bool] = True  # False: values vary between equal runs and go to timings.json

    def requires(self, model: ModelAdapter) -> None:
        """What can be known before anything is loaded; raise `EvaluationError` with the way out."""
        return

    def fingerprint(self) -> str:
        """Text that changes when the files that its options name do, such as a data set; empty where none do.

        Under it, and under the options themselves, what was observed is kept.
        """
        return ""

    @abstractmethod
    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        """Look at one model. `ctx.reference` is its full-precision teacher."""

    @abstractmethod
    def score(self, candidate: Observation, reference: Observation | None) -> Sequence[Metric]:
        """Turn the quantized model's observation, and the original's, into metrics."""


def refuse(evaluator: Evaluator, adapter: ModelAdapter) -> None:
    """Raise `EvaluationError` where the evaluator cannot do its work on this model."""
    if evaluator.needs == "images" and (reason := adapter.cannot_sample()):
        raise EvaluationError(
            f"evaluator {evaluator.name!r} needs images, but {reason}; remove use = {evaluator.name!r} from "
            "[[evaluators]], or use a model that images can be drawn from"
        )
    evaluator.requires(adapter)


def check_observation(evaluator: Evaluator, seen: object) -> None:
    """Raise `EvaluationError` where what an evaluator saw could not be kept or shown."""
    head = f"evaluator {evaluator.name!r}"
    if not isinstance(seen, Observation):
        raise EvaluationError(f"{head} must return a qpass.Observation from observe, not {type(seen).__name__}")
    for name, value in seen.numbers.items():
        if not isinstance(value, Real):
            raise EvaluationError(f"{head}: numbers[{name!r}] must be a number, not {type(value).__name__}")
    for name, curve in seen.series.items():
        if not isinstance(curve, Series):
            raise EvaluationError(f"{head}: series[{name!r}] must be a Series, not {type(curve).__name__}")
        if len(curve.x) != len(curve.y):
            raise EvaluationError(f"{head}: series[{name!r}] has {len(curve.x)} x and {len(curve.y)} y")
    for name, batch in seen.images.items():
        if not isinstance(batch, np.ndarray) or batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
            what = f"{batch.dtype} of {tuple(batch.shape)}" if hasattr(batch, "shape") else type(batch).__name__
            raise EvaluationError(f"{head}: images[{name!r}] must be uint8 of N x H x W x 3, not {what}")


def check_metrics(evaluator: Evaluator, metrics: object) -> Sequence[Metric]:
    """What `score` returned; an `EvaluationError` where it is no sequence of metrics."""
    if not isinstance(metrics, Sequence):
        kind = type(metrics).__name__
        raise EvaluationError(f"evaluator {evaluator.name!r} must return a sequence of qpass.Metric, not {kind}")
    for metric in metrics:
        if not isinstance(metric, Metric):
            kind = type(metric).__name__
            raise EvaluationError(f"evaluator {evaluator.name!r} must return qpass.Metric objects, not {kind}")
        if not isinstance(metric.value, Real):
            kind = type(metric.value).__name__
            raise EvaluationError(f"evaluator {evaluator.name!r}: {metric.name} must be a number, not {kind}")
    return metrics


def finite(value: float | torch.Tensor) -> float | None:
    """The value as JSON can hold it: not finite is null.

    >>> finite(float("inf")) is None
    True
    """
    number = float(value)
    return number if np.isfinite(number) else None
