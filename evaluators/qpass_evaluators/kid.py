"""Kernel Inception Distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
from attrs import validators as v

from qpass.evaluator import Metric
from qpass.measuring import Bench
from qpass_evaluators.features import Features
from qpass_evaluators.population import Population
from qpass_evaluators.statistics.kernel import kernel_distances
from qpass_evaluators.through_inception import InceptionEvaluator


@attrs.frozen(kw_only=True)
class Kid(InceptionEvaluator):
    """Squared maximum mean discrepancy of pooled Inception features, Bińkowski et al. (2018).

    kid: mean over random subsets of the unbiased estimate under the kernel (xᵀy / 2048 + 1)³; kid_std: its standard
    deviation over subsets. Needs features of both sides: images, or a reference that keeps features.
    """

    name: ClassVar[str] = "kid"
    metrics: ClassVar[tuple[str, ...]] = ("kid", "kid_std")
    rows: ClassVar[bool] = True

    subsets: int = attrs.field(default=100, validator=v.ge(1), metadata={"help": "pairs of random subsets"})
    subset_size: int = attrs.field(
        default=1000, validator=v.ge(2), metadata={"help": "images in each; of fewer images, all"}
    )
    seed: int = attrs.field(default=2020, validator=v.ge(0), metadata={"help": "of the subsets"})

    def needed(self) -> tuple[int, str]:
        return 2, "an unbiased estimate"

    def compare(self, ours: Features, theirs: Population, bench: Bench) -> Sequence[Metric]:
        a, b = ours.rows("pool"), theirs.rows("pool")
        size = min(self.subset_size, len(a), len(b))
        if size < self.subset_size:
            bench.warn(f"kid: subsets of {size} images, since there are no {self.subset_size} on both sides")
        found = kernel_distances(a, b, subsets=self.subsets, size=size, seed=self.seed)
        how = {
            "output": "pool",
            "subsets": self.subsets,
            "subset_size": size,
            "subset_seed": self.seed,
            **theirs.as_reference(),
            "reference_rows": len(b),
        }
        return (
            self.metric("kid", float(found.mean()), ours, **how),
            self.metric("kid_std", float(found.std(correction=0)), ours, **how),
        )
