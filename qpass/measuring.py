"""The contract of an evaluator that needs images alone: in a recipe those that both models draw, in `qpass measure`
anyone's.

Such an evaluator defines `measure`; observing a model and scoring it follow from that.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import torch

from qpass.errors import RecipeError, did_you_mean
from qpass.evaluator import EvaluationError, Evaluator, Metric, Observation, Subject, check_metrics
from qpass.images import DrawnImages, Images, OriginalImages
from qpass.manager import PassContext
from qpass.plugins import Catalog
from qpass.progress import Progress
from qpass.recipe.structure import Structure

METRICS = "metrics"  # where an observation's protocol says all but the value of each metric


@attrs.frozen(kw_only=True, eq=False)
class Bench:
    """Where images are measured. What took long, such as features, is kept in `folder` and found there again."""

    folder: Path
    device: torch.device = attrs.field(factory=lambda: torch.device("cpu"))
    progress: Progress = attrs.field(factory=Progress)

    def warn(self, line: str) -> None:
        """Say what a reader of the figure must know."""
        self.progress.say(f"warning: {line}")


class ImageEvaluator(Evaluator):
    """Measures a set of images. Subclasses are frozen attrs classes, with `samples` among their options."""

    needs: ClassVar[Literal["images", "model"]] = "images"
    metrics: ClassVar[tuple[str, ...]]  # the names of what it measures
    samples: int  # images drawn from each model in a recipe

    @abstractmethod
    def measure(self, images: Images, bench: Bench) -> Sequence[Metric]:
        """The metrics of these images; their `subject` is filled in by whoever asked."""

    def reference(self, images: Images, bench: Bench, about: Mapping[str, Any]) -> bytes:
        """The content of a file that stands for these images as what others are compared with.

        `about` goes into it: `name`, `command`, and under `rows` how many features to keep beside the statistics.
        """
        raise EvaluationError(f"evaluator {self.name!r} compares with nothing, so there is no reference to make")

    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        """The metrics of the images that the model draws."""
        kind = OriginalImages if subject.role == "original" else DrawnImages
        images = ctx.get(kind(count=self.samples), subject.graph)
        return self.seen(self.measure(images, bench(ctx)))

    def seen(self, metrics: Sequence[Metric]) -> Observation:
        """Metrics as an observation keeps them."""
        return Observation(
            numbers={metric.name: metric.value for metric in metrics},
            protocol={METRICS: {metric.name: _all_but_value(metric) for metric in metrics}},
        )

    def score(self, candidate: Observation, reference: Observation | None) -> Sequence[Metric]:
        """The metrics of both models."""
        found: list[Metric] = []
        for role, seen in (("original", reference), ("quantized", candidate)):
            for name, value in seen.numbers.items() if seen else ():
                assert seen is not None  # or there would be no numbers
                rest = seen.protocol[METRICS][name]
                found.append(Metric(**{**rest, "name": name, "value": value, "subject": self.subject(role)}))
        return tuple(found)

    def subject(self, role: str) -> str:
        """Whose metric it is, of one seen on the model of that role."""
        return role


def _all_but_value(metric: Metric) -> dict[str, Any]:
    return {"better": metric.better, "unit": metric.unit, "protocol": dict(metric.protocol)}


def bench(ctx: PassContext) -> Bench:
    """The run's device and progress; features lie under fingerprints, so other runs may find them too."""
    return Bench(folder=ctx.shared, device=ctx.device, progress=ctx.progress)


def option_names(cls: Any) -> frozenset[str]:
    """The options of an evaluator."""
    return frozenset(field.name for field in attrs.fields(cls) if field.init)


def measurers(catalog: Catalog) -> dict[str, type[ImageEvaluator]]:
    """Every metric that needs images alone, by name, with the evaluator it comes from."""
    return {
        metric: cls
        for cls in catalog.classes["evaluators"].values()
        if issubclass(cls, ImageEvaluator)
        for metric in cls.metrics
    }


def measurer(metric: str, catalog: Catalog) -> type[ImageEvaluator]:
    """The evaluator that measures the metric; an `EvaluationError` with the nearest name where there is none."""
    known = measurers(catalog)
    if metric not in known:
        raise EvaluationError(f"unknown metric {metric!r}, {did_you_mean(metric, known)}")
    return known[metric]


def prepared(
    metrics: Sequence[str], options: Sequence[tuple[tuple[str, ...], Any]], catalog: Catalog
) -> tuple[ImageEvaluator, ...]:
    """The evaluators of the metrics, each once, with the options that are theirs.

    An option (`OPTION`,) goes to every evaluator that has one of that name, (`EVALUATOR`, `OPTION`) to that one. All
    mistakes are reported together.
    """
    classes = tuple(dict.fromkeys(measurer(metric, catalog) for metric in metrics))
    own: dict[str, dict[str, Any]] = {cls.name: {} for cls in classes}
    fields = {cls.name: option_names(cls) for cls in classes}
    problems: list[str] = []
    for (*whose, option), value in options:
        if whose and (len(whose) > 1 or whose[0] not in own):
            problems.append(
                f"option {'.'.join((*whose, option))}: none of {', '.join(own)} is {'.'.join(whose)!r}"
            )
            continue
        if option == "samples":
            problems.append(
                "option samples: it is how many images a recipe draws, and these are there already; "
                "`qpass measure --samples N` takes the first N of them"
            )
            continue
        takers = [name for name in whose or own if option in fields[name]]
        if not takers:
            known = set().union(*(fields[name] for name in whose or own)) - {"samples"}
            problems.append(f"no metric asked for has the option {option!r}, {did_you_mean(option, known)}")
        for name in takers:
            own[name][option] = value
    structure = Structure(catalog)
    made: list[ImageEvaluator] = []
    for cls in classes:
        if "against" in fields[cls.name] and "against" not in own[cls.name]:
            problems.append(
                f"{cls.name} compares with something; say with what: --against cifar10-train, or a folder"
            )
            continue
        built = structure.build(cls, own[cls.name], cls.name)
        if built is not None:
            made.append(built)
    if problems := [*problems, *structure.problems]:
        raise RecipeError(problems, "measure")
    return tuple(made)


@torch.no_grad()
def measure(images: Images, evaluators: Sequence[ImageEvaluator], bench: Bench) -> tuple[Metric, ...]:
    """Every metric of the images."""
    return tuple(
        metric for evaluator in evaluators for metric in check_metrics(evaluator, evaluator.measure(images, bench))
    )
