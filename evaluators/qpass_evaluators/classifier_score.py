"""The Inception Score's formula on a classifier of CIFAR-10: not an Inception Score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs
from attrs import validators as v

from qpass.evaluator import Metric
from qpass.images import Images
from qpass.measuring import Bench
from qpass.model import ModelAdapter
from qpass_evaluators.feature_evaluator import FeatureEvaluator, at_least
from qpass_evaluators.networks.feature_network import FeatureNetwork
from qpass_evaluators.statistics.score import scores, shuffled
from qpass_evaluators.through_inception import SAMPLES


@attrs.frozen(kw_only=True)
class ClassifierScore(FeatureEvaluator):
    """Sureness and variety: exp E KL(p(y|x) ‖ p(y)) over ten classes, by the CIFAR-10 classifier that ships.

    classifier_score: the mean over `splits` equal parts of the images (32 x 32) in a random order. It works offline
    and says how sure and how varied the images look, but compares with no Inception Score.
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

    def needed(self) -> tuple[int, str]:
        return self.splits, f"a score of {self.splits} splits"

    def requires(self, model: ModelAdapter) -> None:
        super().requires(model)
        if size := model.sampler().size:
            self.network().check_size(*size)

    def measure(self, images: Images, bench: Bench) -> Sequence[Metric]:
        at_least(self.name, len(images), *self.needed())
        seen = self.see(images, bench)
        found = scores(shuffled(seen.rows("logits"), self.seed), self.splits)
        return (
            self.metric("classifier_score", float(found.mean()), seen, splits=self.splits, order_seed=self.seed),
        )
