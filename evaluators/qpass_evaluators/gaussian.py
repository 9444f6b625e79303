"""The Fréchet distance of one output of a feature network, as `fid`, `sfid` and `fd` report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from qpass.evaluator import Metric
from qpass.measuring import Bench
from qpass_evaluators.feature_evaluator import ComparingEvaluator
from qpass_evaluators.features import Features
from qpass_evaluators.population import Population
from qpass_evaluators.statistics.frechet import frechet


class GaussianEvaluator(ComparingEvaluator):
    """Subclasses name the output; their first metric is the distance."""

    output: ClassVar[str] = "pool"

    def needed(self) -> tuple[int, str]:
        return 2, "a covariance"

    def compare(self, ours: Features, theirs: Population, bench: Bench) -> Sequence[Metric]:
        moments = ours.moments(self.output), theirs.moments(self.output)
        for side, seen in zip((ours, theirs), moments, strict=True):
            if seen.count <= seen.dimensions:
                bench.warn(
                    f"{self.name}: {seen.count} images ({side.name}) for {seen.dimensions} dimensions; the figure is "
                    "computed, but so few images make it too high, and it compares only with figures of as many"
                )
        return (
            self.metric(self.metrics[0], frechet(*moments), ours, output=self.output, **theirs.as_reference()),
        )
