"""Inception Score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import attrs
from attrs import validators as v

from qpass.evaluator import EvaluationError, Metric
from qpass.images import Images
from qpass.measuring import Bench
from qpass_evaluators.feature_evaluator import FeatureEvaluator, at_least
from qpass_evaluators.networks.feature_network import FeatureNetwork
from qpass_evaluators.statistics.score import scores, shuffled
from qpass_evaluators.through_inception import PRECISION, RESIZE, SAMPLES, Precision, Resize

WEIGHTS = "file of Inception weights with its classes; empty is what torch-fidelity downloaded"


@attrs.frozen(kw_only=True)
class InceptionScore(FeatureEvaluator):
    """Sureness and variety: exp E KL(p(y|x) ‖ p(y)) over the 1,008 classes of Inception, Salimans et al. (2016).

    is: the mean over `splits` equal parts of the images in a random order; is_std: the standard deviation over them.
    The weights that ship have no classes: give the full ones in a file, or let torch-fidelity download them.
    """

    name: ClassVar[str] = "inception-score"
    metrics: ClassVar[tuple[str, ...]] = ("is", "is_std")
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    samples: int = attrs.field(default=10_000, validator=v.ge(1), metadata={"help": SAMPLES})
    weights: str = attrs.field(default="", metadata={"help": WEIGHTS})
    resize: Resize = attrs.field(default="pytorch", metadata={"help": RESIZE})
    precision: Precision = attrs.field(default="float32", metadata={"help": PRECISION})
    splits: int = attrs.field(default=10, validator=v.ge(1), metadata={"help": "parts whose scores are averaged"})
    seed: int = attrs.field(default=2020, validator=v.ge(0), metadata={"help": "of the order of the images"})

    def network(self) -> FeatureNetwork:
        from qpass_evaluators.networks.inception import Inception
        from qpass_evaluators.networks.inception_weights import FULL, downloaded

        weights = self.weights or str(downloaded() or "")
        network = Inception(resize=self.resize, precision=self.precision, weights=weights)
        if "logits" not in network.dimensions():
            raise EvaluationError(
                "inception-score needs the 1,008 classes of Inception, which the weights that ship do not have; fetch "
                f"{FULL} from the releases of github.com/toshas/torch-fidelity and give its path as the option "
                "`weights`, or run torch-fidelity once and leave its download where it is. No other network's figure "
                "may be called Inception Score; `classifier-score` has the same formula on CIFAR-10's ten classes"
            )
        return network

    def needed(self) -> tuple[int, str]:
        return self.splits, f"a score of {self.splits} splits"

    def measure(self, images: Images, bench: Bench) -> Sequence[Metric]:
        network = self.network()
        at_least(self.name, len(images), *self.needed())
        seen = self.see(images, bench)
        found = scores(shuffled(seen.rows("logits"), self.seed), self.splits)
        how = {"classes": network.dimensions()["logits"], "splits": self.splits, "order_seed": self.seed}
        return (
            self.metric("is", float(found.mean()), seen, **how),
            attrs.evolve(self.metric("is_std", float(found.std(correction=0)), seen, **how), better="lower"),
        )
