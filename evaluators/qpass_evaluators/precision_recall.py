"""Precision and recall of generated images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs
from attrs import validators as v

from qpass.evaluator import Metric
from qpass.measuring import Bench
from qpass_evaluators.features import Features
from qpass_evaluators.population import Population
from qpass_evaluators.statistics import manifold
from qpass_evaluators.through_inception import InceptionEvaluator


@attrs.frozen(kw_only=True)
class PrecisionRecall(InceptionEvaluator):
    """Improved precision and recall, Kynkäänniemi et al. (2019), on pooled Inception features.

    precision: the share of the measured images that lie within the k-th neighbour's distance of a real one; recall:
    the share of the real images that lie so near a measured one. Both fall or rise with the number of images. Needs
    features of both sides: images, or a reference that keeps features.
    """

    name: ClassVar[str] = "precision-recall"
    metrics: ClassVar[tuple[str, ...]] = ("precision", "recall")
    rows: ClassVar[bool] = True
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    neighbours: int = attrs.field(
        default=3, validator=v.ge(1), metadata={"help": "k: which neighbour's distance is the radius"}
    )

    def needed(self) -> tuple[int, str]:
        return self.neighbours + 1, f"neighbour {self.neighbours}"

    def compare(self, ours: Features, theirs: Population, bench: Bench) -> Sequence[Metric]:
        a, b = ours.rows("pool"), theirs.rows("pool")
        precision, recall = manifold.precision_recall(a, b, self.neighbours)
        how = {
            "output": "pool",
            "neighbours": self.neighbours,
            **theirs.as_reference(),
            "reference_rows": len(b),
        }
        return (self.metric("precision", precision, ours, **how), self.metric("recall", recall, ours, **how))
