"""Every metric of images: from pixels to figures by one formula, with all that determines it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from qpass_evaluators.classifier import ClassAccuracy
from qpass_evaluators.fid import Fid
from qpass_evaluators.inception_score import InceptionScore
from qpass_evaluators.kid import Kid
from qpass_evaluators.precision_recall import PrecisionRecall
from qpass_evaluators.sfid import Sfid
from scipy.linalg import sqrtm
from thumbnail import Thumbnail
from torch.fx import GraphModule

from qpass.evaluator import EvaluationError, Metric, Subject, refuse
from qpass.images import open_images
from qpass.manager import PassContext
from qpass.measuring import Bench, ImageEvaluator
from qpass.protocol import check_alike
from qpass.report.data import plain

Photos = Callable[..., Path]
COMPARING = (Fid, Sfid, Kid, PrecisionRecall)


@attrs.frozen
class Pair:
    """Two sets of images on disk, their features, and a bench."""

    ours: Path
    theirs: Path
    bench: Bench

    def features(self, output: str) -> list[np.ndarray]:
        images = (np.load(path)["images"] for path in (self.ours, self.theirs))
        return [Thumbnail().features(some)[output].double().numpy() for some in images]

    def measure(self, evaluator: ImageEvaluator) -> dict[str, Metric]:
        found = evaluator.measure(open_images(str(self.ours)), self.bench)
        return {metric.name: metric for metric in found}


@pytest.fixture
def pair(thumbnail: list[int], photos: Photos, tmp_path: Path) -> Pair:
    thumbnail.clear()
    return Pair(photos("ours", 60, 1), photos("theirs", 80, 2), Bench(folder=tmp_path / "work"))


@pytest.mark.parametrize(("cls", "output"), [(Fid, "pool"), (Sfid, "spatial")])
def test_fid_and_sfid(pair: Pair, cls: Any, output: str) -> None:
    """The textbook's formula with scipy's square root, on that output's features."""
    a, b = pair.features(output)
    s, t = np.cov(a.T), np.cov(b.T)
    apart = a.mean(0) - b.mean(0)
    expected = apart @ apart + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t)).real
    (metric,) = pair.measure(cls(against=str(pair.theirs))).values()
    assert metric.name == cls.name
    assert metric.value == pytest.approx(expected, rel=1e-6)
    assert metric.protocol["output"] == output


def test_one_extraction_for_all(pair: Pair, thumbnail: list[int]) -> None:
    """Four metrics look at each image of either side once."""
    for cls in COMPARING:
        pair.measure(cls(against=str(pair.theirs)))
    assert sum(thumbnail) == 60 + 80


def test_kid_and_its_subsets(pair: Pair) -> None:
    """Of fewer images than a subset holds, all are taken, and the protocol says so."""
    found = pair.measure(Kid(against=str(pair.theirs), subsets=5))
    assert found["kid"].protocol["subset_size"] == 60
    assert found["kid_std"].value >= 0


def test_precision_and_recall(pair: Pair) -> None:
    """Of a set against itself both are 1."""
    same = Pair(pair.ours, pair.ours, pair.bench).measure(PrecisionRecall(against=str(pair.ours)))
    assert {name: metric.value for name, metric in same.items()} == {"precision": 1.0, "recall": 1.0}


def test_inception_score(pair: Pair) -> None:
    """Between 1 and the number of classes, the same for any order of the images but for the splits' luck."""
    found = pair.measure(InceptionScore(splits=2))
    assert 1 < found["is"].value < 3
    assert found["is"].protocol["classes"] == 3


@pytest.mark.parametrize("cls", COMPARING)
def test_the_protocol(pair: Pair, cls: Any) -> None:
    """Network, weights, resize, precision, range, number and size of the images, reference: all are there."""
    for metric in pair.measure(cls(against=str(pair.theirs))).values():
        protocol = metric.protocol
        keys = {"features", "weights", "resize", "precision", "pixels", "images", "size", "reference_hash"}
        assert keys | {"reference", "reference_images", "reference_size"} <= set(protocol)
        assert (protocol["images"], protocol["reference_images"], protocol["size"]) == (60, 80, "8x8")
        json.dumps(plain(protocol), allow_nan=False)


def test_unlike_metrics_do_not_compare(pair: Pair) -> None:
    """The difference is named; alike ones pass."""
    (one,) = pair.measure(Fid(against=str(pair.theirs))).values()
    (two,) = pair.measure(Fid(against=str(pair.theirs), resize="tensorflow")).values()
    check_alike(one, attrs.evolve(one, value=2.0))
    with pytest.raises(EvaluationError) as caught:
        check_alike(one, two, ("A", "B"))
    assert str(caught.value) == (
        "fid of A and B were measured differently: resize 'pytorch' against 'tensorflow'; "
        "measure both in one way to compare them"
    )
    with pytest.raises(EvaluationError, match="fid of the first and sfid of the second are different metrics"):
        check_alike(one, attrs.evolve(one, name="sfid"))


def test_fewer_images_than_dimensions(
    thumbnail: list[int], photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning for each side that has too few, and a figure all the same."""
    from qpass.progress import LineProgress

    bench = Bench(folder=tmp_path / "work", progress=LineProgress())
    (metric,) = Fid(against=str(photos("b", 30, 2))).measure(open_images(str(photos("a", 5))), bench)
    assert np.isfinite(metric.value)
    assert metric.value > 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 1
    assert said[0].startswith("warning: fid: 5 images (a) for 12 dimensions")


def test_images_of_another_size(
    thumbnail: list[int], photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are compared after a resize: with a warning, and both sizes in the protocol."""
    from qpass.progress import LineProgress

    bench = Bench(folder=tmp_path / "work", progress=LineProgress())
    other = photos("b", 30, 2, 16)
    (metric,) = Fid(against=str(other)).measure(open_images(str(photos("a", 30))), bench)
    assert "warning: fid: images of 8x8 are compared with images of 16x16" in capsys.readouterr().err
    assert (metric.protocol["size"], metric.protocol["reference_size"]) == ("8x8", "16x16")


@pytest.mark.parametrize(
    ("make", "count", "message"),
    [
        (lambda path: Fid(against=path), 1, "a covariance needs at least 2"),
        (lambda path: Kid(against=path), 1, "an unbiased estimate needs at least 2"),
        (lambda path: PrecisionRecall(against=path), 3, "neighbour 3 needs at least 4"),
        (lambda path: InceptionScore(), 9, "a score of 10 splits needs at least 10"),
    ],
)
def test_too_few_for_the_formula(
    thumbnail: list[int], photos: Photos, tmp_path: Path, make: Any, count: int, message: str
) -> None:
    """Refused, with how many it takes."""
    with pytest.raises(EvaluationError, match=message):
        make(str(photos("b", 30))).measure(open_images(str(photos("a", count))), Bench(folder=tmp_path))


def test_inception_score_without_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that ship have none: the error says exactly what to fetch, and of no other network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where nothing was ever downloaded to
    with pytest.raises(EvaluationError, match=r"weights-inception-2015-12-05-6726825d.pth .* `weights`"):
        InceptionScore().requires(None)  # type: ignore[arg-type]


def test_class_accuracy_needs_classes(context: Callable[..., PassContext], teacher: GraphModule) -> None:
    """A model that knows none is refused before anything is drawn."""
    with pytest.raises(EvaluationError, match="needs a model of CIFAR-10's ten classes, and 'tiny' draws images"):
        refuse(ClassAccuracy(), context(teacher).model)


class TestInARecipe:
    """The same metrics of the images that both models draw."""

    @pytest.fixture
    def subjects(self, teacher: GraphModule) -> list[Subject]:
        quantized = GraphModule(teacher, teacher.graph)
        import copy

        quantized = copy.deepcopy(quantized)
        with torch.no_grad():
            for parameter in quantized.parameters():
                parameter.mul_(1.2)
        return [Subject(role="original", graph=teacher), Subject(role="quantized", graph=quantized)]

    def test_both_models(
        self,
        thumbnail: list[int],
        subjects: list[Subject],
        context: Callable[..., PassContext],
        photos: Photos,
        tmp_path: Path,
    ) -> None:
        """A figure for each, of as many images as the option says, drawn and seen once for three evaluators."""
        ctx = context(subjects[0].graph, scratch=tmp_path / "run")
        real = str(photos("real", 40, size=12))
        metrics: list[Metric] = []
        for evaluator in (
            Fid(samples=7, against=real),
            Sfid(samples=7, against=real),
            Kid(samples=7, against=real),
        ):
            ctx.analyses.drop_graph(frozenset())
            seen = [evaluator.observe(subject, ctx) for subject in subjects]
            metrics += evaluator.score(seen[1], seen[0])
            assert evaluator.score(seen[1], None)
        assert sum(thumbnail) == 40 + 7 + 7
        assert [(m.name, m.subject) for m in metrics[:2]] == [("fid", "original"), ("fid", "quantized")]
        assert metrics[0].value != metrics[1].value
        protocol = metrics[0].protocol
        assert (protocol["images"], protocol["sampler"], protocol["seed"]) == (7, "ddim", 0)
        check_alike(metrics[0], metrics[1])

    def test_what_is_asked_before_the_run(self, thumbnail: list[int], context: Any, teacher: GraphModule) -> None:
        """A reference that is nowhere is found missing before any weight is read."""
        with pytest.raises(EvaluationError, match="there are no images 'nowhere'"):
            refuse(Fid(against="nowhere"), context(teacher).model)
