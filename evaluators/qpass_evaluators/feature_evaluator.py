"""What evaluators that compare features share: find both sides, see them with one network, say how it was done."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qpass.evaluator import EvaluationError, Metric
from qpass.images import Images
from qpass.measuring import Bench, ImageEvaluator
from qpass.model import ModelAdapter
from qpass_evaluators import against
from qpass_evaluators.features import Features, extract
from qpass_evaluators.population import Population
from qpass_evaluators.reference import make_reference

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork

PIXELS = "uint8, 0..255"  # what every network here is given, whatever was drawn or read


class FeatureEvaluator(ImageEvaluator):
    """Looks at images through a feature network."""

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    @abstractmethod
    def network(self) -> FeatureNetwork:
        """Through which network."""

    def needed(self) -> tuple[int, str]:
        """How many images the formula takes at least, and what of it needs them."""
        return 1, "it"

    def requires(self, model: ModelAdapter) -> None:
        least, why = self.needed()
        if self.samples < least:
            raise EvaluationError(
                f"{self.name}: samples = {self.samples} is too small; {why} needs at least {least}"
            )
        network = self.network()
        network.protocol()  # names the weights, so they must be there
        network.check()

    def fingerprint(self) -> str:
        return self.network().fingerprint()

    def see(self, images: Images, bench: Bench) -> Features:
        """The images' features."""
        return extract(self.network(), images, bench)

    def metric(self, name: str, value: float, seen: Features, **how: Any) -> Metric:
        """A metric with all that determined it; `how` is what the formula adds."""
        protocol = {**seen.protocol(), **seen.images.protocol(), "pixels": PIXELS, "size": seen.size, **how}
        return Metric(name=name, value=value, better=self.better, subject="images", protocol=protocol)


class ComparingEvaluator(FeatureEvaluator):
    """Compares images with those of a data set, or with statistics in their place: the option `against`."""

    against: str
    rows: ClassVar[bool] = False  # whether features are needed, and not their moments alone

    @abstractmethod
    def compare(self, ours: Features, theirs: Population, bench: Bench) -> Sequence[Metric]:
        """The metrics of one side against the other."""

    @abstractmethod
    def flags(self) -> str:
        """The options with which `qpass reference` makes what fits."""

    def requires(self, model: ModelAdapter) -> None:
        super().requires(model)
        self.check_against(self.network())

    def fingerprint(self) -> str:
        compared = against.fingerprint(self.against, self.network(), rows=self.rows, flags=self.flags())
        return f"{super().fingerprint()} {compared}"

    def measure(self, images: Images, bench: Bench) -> Sequence[Metric]:
        network = self.network()
        at_least(self.name, len(images), *self.needed())
        self.check_against(network)
        ours = self.see(images, bench)
        theirs = against.find(self.against, network, bench, rows=self.rows, flags=self.flags())
        if theirs.size != ours.size:
            bench.warn(f"{self.name}: images of {ours.size} are compared with images of {theirs.size}")
        return self.compare(ours, theirs, bench)

    def check_against(self, network: FeatureNetwork) -> None:
        """Raise `EvaluationError` where what is compared with is not there, does not fit, or is too little."""
        count = against.check(self.against, network, rows=self.rows, flags=self.flags())
        least, why = self.needed()
        if count < least:
            raise EvaluationError(
                f"{self.name}: {self.against!r} gives {count} to compare with, and {why} needs at least {least}"
            )

    def reference(self, images: Images, bench: Bench, about: Mapping[str, Any]) -> bytes:
        return make_reference(self.network(), images, bench, about)


def at_least(name: str, count: int, needed: int, why: str) -> None:
    """Raise `EvaluationError` where there are too few images for the formula."""
    if count < needed:
        raise EvaluationError(f"{name}: {count} images are too few; {why} needs at least {needed}")
