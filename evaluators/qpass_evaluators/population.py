"""What a metric compares: many images, known by the moments of their features, or by the features themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qpass_evaluators.statistics.moments import Moments


class Population(ABC):
    """Images as a feature network sees them. `output` is one of the network's, such as "pool"."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call it."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many images there are."""

    @property
    @abstractmethod
    def size(self) -> str:
        """Height x width of the images before any resize."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """A hash of the images' pixels, or of the file that stands for them."""

    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """What the features depend on: network, weights, resize, precision."""

    @abstractmethod
    def moments(self, output: str) -> Moments:
        """Mean and covariance over all images."""

    @abstractmethod
    def rows(self, output: str) -> Tensor:
        """The features themselves, N x D. Raises `EvaluationError` where only their moments are known."""

    def as_reference(self) -> dict[str, Any]:
        """How a metric's protocol names what was compared with."""
        return {
            "reference": self.name,
            "reference_images": self.count,
            "reference_size": self.size,
            "reference_hash": self.digest,
        }
