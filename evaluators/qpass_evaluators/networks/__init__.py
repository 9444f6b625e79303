"""Networks whose features metrics are made of, each with the weights and the preprocessing that pin it."""

from __future__ import annotations

from qpass_evaluators.networks.classifier import Classifier
from qpass_evaluators.networks.feature_network import FeatureNetwork
from qpass_evaluators.networks.inception import Inception
from qpass_evaluators.networks.lpips import Lpips
from qpass_evaluators.networks.timm_backbone import TimmBackbone

__all__ = ["Classifier", "FeatureNetwork", "Inception", "Lpips", "TimmBackbone"]
