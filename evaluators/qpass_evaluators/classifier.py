"""Whether images of a class look like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import attrs
import torch
from attrs import validators as v

from qpass.errors import RecipeError
from qpass.evaluator import EvaluationError, Metric
from qpass.images import Images
from qpass.measuring import Bench
from qpass.model import ModelAdapter
from qpass.sampling import Sampling
from qpass_evaluators.feature_evaluator import FeatureEvaluator
from qpass_evaluators.through_inception import SAMPLES

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork

CLASSES = 10


@attrs.frozen(kw_only=True)
class ClassAccuracy(FeatureEvaluator):
    """The share of images that the CIFAR-10 classifier takes for the class they were made as.

    class_accuracy: image i (32 x 32) counts where the classifier's first choice is class i modulo 10, which is how
    class-conditional models are sampled here. Models that know no classes, or others, are refused.
    """

    name: ClassVar[str] = "classifier"
    metrics: ClassVar[tuple[str, ...]] = ("class_accuracy",)
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    samples: int = attrs.field(default=1_000, validator=v.ge(1), metadata={"help": SAMPLES})

    def network(self) -> FeatureNetwork:
        from qpass_evaluators.networks.classifier import Classifier

        return Classifier()

    def requires(self, model: ModelAdapter) -> None:
        try:
            given = model.sampler().conditions(range(2 * CLASSES), Sampling()).given
        except RecipeError:  # it lacks prompts, which would make no classes of CIFAR-10
            given = ()
        in_turn = torch.arange(2 * CLASSES) % CLASSES
        if len(given) != 1 or given[0].shape != in_turn.shape or not torch.equal(given[0].cpu(), in_turn):
            raise EvaluationError(
                f"evaluator {self.name!r} needs a model of CIFAR-10's ten classes, and {model.name!r} draws images "
                f"without such classes; remove use = {self.name!r} from [[evaluators]]"
            )
        super().requires(model)
        if size := model.sampler().size:
            self.network().check_size(*size)

    def measure(self, images: Images, bench: Bench) -> Sequence[Metric]:
        seen = self.see(images, bench)
        choices = seen.rows("logits").argmax(1)
        right = choices == torch.arange(len(choices)) % CLASSES
        return (self.metric("class_accuracy", float(right.double().mean()), seen, order="class i modulo 10"),)
