"""What can be known at the start is refused at the start: too few images, their size, weights that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from qpass_evaluators.classifier import ClassAccuracy
from qpass_evaluators.classifier_score import ClassifierScore
from qpass_evaluators.fd import Fd
from qpass_evaluators.fid import Fid
from qpass_evaluators.inception_score import InceptionScore
from qpass_evaluators.kid import Kid
from qpass_evaluators.lpips import LpipsDistance
from qpass_evaluators.precision_recall import PrecisionRecall
from qpass_evaluators.sfid import Sfid
from torch.fx import GraphModule

from qpass.evaluator import EvaluationError, Evaluator, refuse
from qpass.images import open_images
from qpass.measuring import Bench
from qpass.model import ModelAdapter
from qpass.sampling import Conditions, Sampler

Photos = Callable[..., Path]


@pytest.fixture
def tiny(context: Any, teacher: GraphModule) -> ModelAdapter:
    """A model that draws images of 12 x 12."""
    model: ModelAdapter = context(teacher).model
    return model


def refusal(evaluator: Evaluator, model: ModelAdapter) -> str:
    """The error, before anything is drawn."""
    with pytest.raises(EvaluationError) as caught:
        refuse(evaluator, model)
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: Fid(against=path, samples=1), "fid: samples = 1 is too small; a covariance needs at least 2"),
        (lambda path: Sfid(against=path, samples=1), "sfid: samples = 1 is too small; a covariance needs at least 2"),
        (lambda path: Kid(against=path, samples=1), "an unbiased estimate needs at least 2"),
        (lambda path: PrecisionRecall(against=path, samples=2), "= 2 is too small; neighbour 3 needs at least 4"),
        (lambda path: InceptionScore(samples=9), "a score of 10 splits needs at least 10"),
        (lambda path: ClassifierScore(samples=3, splits=10), "a score of 10 splits needs at least 10"),
        (lambda path: PrecisionRecall(against=path, neighbours=8), "b.npz' gives 8 to compare with, and neighbour 8"),
    ],
)  # fmt: skip
def test_too_few_images(
    thumbnail: list[int], photos: Photos, tiny: ModelAdapter, make: Callable[[str], Evaluator], message: str
) -> None:
    """With the option, its value and how many it takes; the other side is counted too."""
    assert message in refusal(make(str(photos("b", 8))), tiny)
    assert not thumbnail


@attrs.frozen(kw_only=True)
class Drawing(ModelAdapter):
    """A model of CIFAR-10's classes that draws images of some size, or decodes latents to who knows what."""

    name = "drawing"
    size: tuple[int, int]
    decodes: bool = False

    load = skeleton = example = config = fingerprint = None  # type: ignore[assignment]  # never asked for

    def cannot_sample(self) -> str | None:
        return None

    def sampler(self) -> Sampler:
        def classes(indices: Any, sampling: Any) -> Conditions:
            return Conditions(given=(torch.tensor([i % 10 for i in indices]),))

        own = {"decode": lambda x: x} if self.decodes else {}
        return Sampler(shape=(3, *self.size), scheduler_config={}, conditions=classes, **own)


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (LpipsDistance(), "lpips-alex: images must be at least 31 x 31, not 12 x 12"),
        (ClassifierScore(), "cifar10-classifier: images must be 32 x 32, not 12 x 12"),
        (ClassAccuracy(), "cifar10-classifier: images must be 32 x 32, not 12 x 12"),
    ],
)
def test_images_of_another_size(evaluator: Evaluator, message: str) -> None:
    """Known of models that draw pixels; of latents a plugin's decoder alone may know."""
    assert refusal(evaluator, Drawing(size=(12, 12))) == message
    refuse(evaluator, Drawing(size=(32, 32)))
    refuse(evaluator, Drawing(size=(12, 12), decodes=True))


@pytest.mark.parametrize("cls", [Fid, Kid, InceptionScore, Fd])
@pytest.mark.parametrize("content", ["text", "others"])
def test_weights_that_are_none(photos: Photos, tmp_path: Path, tiny: ModelAdapter, cls: Any, content: str) -> None:
    """A file of something else, and weights of another network."""
    file = tmp_path / "weights.pth"
    file.write_text("# a page of text\n")
    if content == "others":
        torch.save({"fc.weight": torch.ones(1)}, file)
    given = {} if cls is InceptionScore else {"against": str(photos("b", 8))}
    if cls is Fd:
        given["model"] = "test_vit"
    text = refusal(cls(weights=str(file), **given), tiny)
    assert ("cannot be read" if content == "text" else "tensors are missing") in text


def test_weights_of_other_shapes(photos: Photos, tmp_path: Path, tiny: ModelAdapter) -> None:
    """A model of the same names and of other widths."""
    timm = pytest.importorskip("timm")
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    evaluator = Fd(weights=str(file), model="test_vit", against=str(photos("b", 8)))
    refuse(evaluator, tiny)
    torch.save({**state, "norm.weight": torch.ones(3)}, file)
    assert "do not fit test_vit: norm.weight must be (64,), not (3,)" in refusal(evaluator, tiny)


def test_measured_images_are_counted_first(thumbnail: list[int], photos: Photos, tmp_path: Path) -> None:
    """`qpass measure` looks at none where there are too few on either side."""
    for few, many in (("few", "many"), ("many", "few")):
        images = open_images(str(photos(few, 3 if few == "few" else 20)))
        against = str(photos(many, 3 if many == "few" else 20))
        with pytest.raises(EvaluationError, match="neighbour 3 needs at least 4"):
            PrecisionRecall(against=against).measure(images, Bench(folder=tmp_path))
    assert not thumbnail
