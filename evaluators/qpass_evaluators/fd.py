"""Fréchet distance of any network's features."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
from attrs import validators as v

from qpass_evaluators.gaussian import GaussianEvaluator
from qpass_evaluators.through_inception import AGAINST, SAMPLES

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork


@attrs.frozen(kw_only=True)
class Fd(GaussianEvaluator):
    """Fréchet distance of features of any timm model, such as DINOv2, Stein et al. (2023).

    fd: the formula of `fid` on the model's pooled features, N x D, from weights in a file. FD-DINOv2 is the default
    model with size = 224.
    """

    name: ClassVar[str] = "fd"
    metrics: ClassVar[tuple[str, ...]] = ("fd",)

    samples: int = attrs.field(default=10_000, validator=v.ge(1), metadata={"help": SAMPLES})
    against: str = attrs.field(metadata={"help": AGAINST})
    model: str = attrs.field(
        default="vit_large_patch14_dinov2.lvd142m", metadata={"help": "timm's name of the model"}
    )
    weights: str = attrs.field(default="", metadata={"help": "file of its trained weights; required"})
    size: int = attrs.field(
        default=0, validator=v.ge(0), metadata={"help": "side of the resized image; 0 is the model's own"}
    )

    def network(self) -> FeatureNetwork:
        from qpass_evaluators.networks.timm_backbone import TimmBackbone

        return TimmBackbone(model=self.model, weights=self.weights, size=self.size)

    def flags(self) -> str:
        return f"--metric fd --set model={self.model} --set weights={self.weights} --set size={self.size}"
