"""The options of evaluators that look through the Inception network of 2015."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
from attrs import validators as v

from qpass_evaluators.feature_evaluator import ComparingEvaluator

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork

Resize = Literal["pytorch", "tensorflow"]
Precision = Literal["float32", "bfloat16"]
SAMPLES = "images drawn from each model"
AGAINST = "cifar10-train, a reference file, or images: a folder, an .npz, a data set"
RESIZE = "how images reach 299 x 299: half-pixel bilinear as in pytorch-fid, or as TensorFlow 1 and ADM have it"
PRECISION = "of the network's arithmetic; both sides always have the same"


@attrs.frozen(kw_only=True)
class InceptionEvaluator(ComparingEvaluator):
    """Compares features of Inception."""

    samples: int = attrs.field(default=10_000, validator=v.ge(1), metadata={"help": SAMPLES})
    against: str = attrs.field(metadata={"help": AGAINST})
    resize: Resize = attrs.field(default="pytorch", metadata={"help": RESIZE})
    precision: Precision = attrs.field(default="float32", metadata={"help": PRECISION})
    weights: str = attrs.field(default="", metadata={"help": "file of Inception weights; empty is what ships"})

    def network(self) -> FeatureNetwork:
        from qpass_evaluators.networks.inception import Inception

        return Inception(resize=self.resize, precision=self.precision, weights=self.weights)

    def flags(self) -> str:
        own = f" --set weights={self.weights}" if self.weights else ""
        return f"--resize {self.resize} --precision {self.precision}{own}"
