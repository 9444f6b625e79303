"""The Inception Score's formula on a classifier of CIFAR-10: not an Inception Score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import attrs
from attrs import validators as v

from qpass.evaluator import Metric
from qpass.images import Images
from qpass.measuring import Bench
from qpass_evaluators.feature_evaluator import FeatureEvaluator, at_least
from qpass_evaluators.statistics.score import scores, shuffled
from qpass_evaluators.through_inception import SAMPLES

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork


@attrs.frozen(kw_only=True)
class ClassifierScore(FeatureEvaluator):
    """The formula of the Inception Score on the ten classes of the CIFAR-10 classifier that ships; at most 10.

    classifier_score: exp E KL(p(y|x) ‖ p(y)), the mean over `splits` equal parts of the images (32 x 32) in a random
    order. It works offline and says how sure and how varied the images look, but compares with no Inception Score.
    """

    name: ClassVar[str] = "classifier-score"
    metrics: ClassVar[tuple[str, ...]] = ("classifier_score",)
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    samples: int = attrs.field(default=10_000, validator=v.ge(1), metadata={"help": SAMPLES})
    splits: int = attrs.field(default=10, validator=v.ge(1), metadata={"help": "parts whose scores are averaged"})
    seed: int = attrs.field(default=2020, validator=v.ge(0), metadata={"help": "of the order of the images"})

    def network(self) -> FeatureNetwork:
        from qpass_evaluators.networks.classifier import Classifier

        return Classifier()

    def measure(self, images: Images, bench: Bench) -> Sequence[Metric]:
        at_least(self.name, len(images), self.splits, f"a score of {self.splits} splits")
        seen = self.see(images, bench)
        found = scores(shuffled(seen.rows("logits"), self.seed), self.splits)
        return (
            self.metric("classifier_score", float(found.mean()), seen, splits=self.splits, order_seed=self.seed),
        )
