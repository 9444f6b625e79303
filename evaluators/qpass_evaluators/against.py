"""Find what images are compared with: a reference that ships, a reference file, or images themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpass.evaluator import EvaluationError
from qpass.images import open_images
from qpass.images.cifar10 import SHEETS
from qpass.measuring import Bench
from qpass.protocol import differences
from qpass_evaluators.features import extract
from qpass_evaluators.population import Population
from qpass_evaluators.reference import Reference, open_reference

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork

SHIPPED = Path(__file__).with_name("references")


def shipped() -> tuple[Reference, ...]:
    """The references that come with qpass."""
    return tuple(open_reference(path) for path in sorted(SHIPPED.glob("*.safetensors")))


def find(text: str, network: FeatureNetwork, bench: Bench, *, rows: bool, flags: str) -> Population:
    """What `text` names, seen by the network; with `rows`, features and not their moments alone are asked for.

    A name that ships as statistics, and is among the reader's images too, is taken as statistics where those serve.
    `flags` are what makes `qpass reference` use this network.
    """
    found = chosen(text, network, rows=rows, flags=flags)
    return extract(network, open_images(text, bench.progress.say), bench) if found is None else found


def check(text: str, network: FeatureNetwork, *, rows: bool, flags: str) -> int:
    """How many images, or with `rows` features, `find` would find; raises `EvaluationError` where it would, or where
    there are no rows to be had. No image is read for it.
    """
    found = chosen(text, network, rows=rows, flags=flags)
    if found is None:
        return len(open_images(text))
    return len(found.rows(next(iter(found.about["dimensions"])))) if rows else found.count


def fingerprint(text: str, network: FeatureNetwork, *, rows: bool, flags: str) -> str:
    """Text that changes when what `find` would find does; no image is read for it."""
    found = chosen(text, network, rows=rows, flags=flags)
    return open_images(text).fingerprint() if found is None else found.digest


def chosen(text: str, network: FeatureNetwork, *, rows: bool, flags: str) -> Reference | None:
    """The reference that is compared with; None where it is images."""
    found = reference(text, network, flags)
    if found is not None and rows and not found.about["rows"] and text in SHEETS:
        return None
    return found


def reference(text: str, network: FeatureNetwork, flags: str) -> Reference | None:
    """The reference of that name or file; None where `text` can only be images. Unlike protocols are refused."""
    path = Path(text)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise EvaluationError(f"there is no reference {text!r}; make it with `qpass reference`")
        return alike(open_reference(path), network, flags)
    named = [one for one in shipped() if one.name == text]
    fitting = [one for one in named if not differences(one.protocol(), network.protocol())]
    if fitting or not named:
        return fitting[0] if fitting else None
    try:
        open_images(text)
    except EvaluationError:
        return alike(named[0], network, flags)
    return None  # the images are here, and are measured in the way asked for


def alike(found: Reference, network: FeatureNetwork, flags: str) -> Reference:
    """The same reference; an `EvaluationError` where its features are not the network's."""
    if apart := differences(found.protocol(), network.protocol()):
        raise EvaluationError(
            f"reference {found.name!r} was measured differently: {'; '.join(apart)}; measure as it was, or make one "
            f"that fits with `qpass reference IMAGES {flags} --out FILE`"
        )
    return found
