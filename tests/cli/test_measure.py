"""`qpass measure` prints figures of anyone's images; `qpass reference` writes what they are compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qpass_evaluators.reference import open_reference

from qpass.cli import main

Photos = Callable[..., Path]
Capture = pytest.CaptureFixture[str]

PLUGIN = '''
"""Mean brightness of images."""
import attrs
import qpass
from qpass.measuring import ImageEvaluator


@attrs.frozen(kw_only=True)
class Brightness(ImageEvaluator):
    """Mean of all values."""

    name = "brightness"
    metrics = ("brightness",)
    samples: int = attrs.field(default=64, metadata={"help": "images"})
    scale: float = attrs.field(default=1.0, metadata={"help": "factor"})

    def measure(self, images, bench):
        total = sum(float(batch.mean()) * len(batch) for batch in images.batches(7))
        value = self.scale * total / len(images)
        return [qpass.Metric(name="brightness", value=value, protocol=dict(images.protocol()))]


@qpass.hookimpl
def register_evaluators():
    return [Brightness]
'''


@pytest.fixture
def two(thumbnail: list[int], photos: Photos) -> tuple[str, str]:
    """Two sets of images, and a network that is quick."""
    return str(photos("ours", 60, 1)), str(photos("theirs", 80, 2))


def measured(capsys: Capture, *args: str) -> dict[str, float]:
    """The values that the command prints as JSON."""
    assert main(["measure", *args, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"metrics"}
    for metric in document["metrics"]:
        assert set(metric) == {"name", "value", "better", "unit", "subject", "protocol"}
    return {metric["name"]: metric["value"] for metric in document["metrics"]}


def test_several_metrics_in_one_pass(two: tuple[str, str], thumbnail: list[int], capsys: Capture) -> None:
    """In the order asked for; each image is looked at once."""
    found = measured(capsys, two[0], "--against", two[1], "--metrics", "recall,fid,sfid,kid,precision")
    assert list(found) == ["recall", "fid", "sfid", "kid", "precision"]
    assert sum(thumbnail) == 140


def test_a_table(two: tuple[str, str], capsys: Capture) -> None:
    """Without --json: a row for each, and how it was measured."""
    assert main(["measure", two[0], "--against", two[1], "--metrics", "fid,kid"]) == 0
    said = capsys.readouterr().out
    assert "fid" in said
    assert "subset_size 60" in " ".join(said.split())
    assert "resize pytorch" in " ".join(said.split())


def test_options(two: tuple[str, str], capsys: Capture) -> None:
    """Flags and --set reach the evaluators that have them; --samples takes the first images."""
    ours, theirs = two
    args = (ours, "--against", theirs, "--metrics", "kid,is", "--resize", "tensorflow", "--samples", "50")
    main(["measure", *args, "--seed", "3", "--set", "kid.subset_size=20", "--set", "splits=5", "--json"])
    kid, score = (m["protocol"] for m in json.loads(capsys.readouterr().out)["metrics"])
    assert (kid["resize"], kid["images"], kid["subset_size"], kid["subset_seed"]) == ("tensorflow", 50, 20, 3)
    assert (score["resize"], score["splits"], score["order_seed"]) == ("tensorflow", 5, 3)


def test_work_is_kept(two: tuple[str, str], thumbnail: list[int], tmp_path: Path, capsys: Capture) -> None:
    """With --work, the same command again computes no features, and prints the same; another metric needs none too."""
    args = (two[0], "--against", two[1], "--work", str(tmp_path / "work"))
    first = measured(capsys, *args)
    thumbnail.clear()
    assert measured(capsys, *args) == first
    measured(capsys, *args, "--metrics", "kid")
    assert thumbnail == []


def test_a_reference_in_place_of_images(
    two: tuple[str, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qpass reference` writes it, `--against` takes it, and the figures agree; its checkpoint is gone."""
    monkeypatch.chdir(tmp_path)
    assert main(["reference", two[1], "--keep-features", "80"]) == 0
    assert capsys.readouterr().out == "theirs.safetensors\n"
    assert not Path("theirs.safetensors.part").exists()
    against = [measured(capsys, two[0], "--against", what, "--metrics", "fid,kid")
               for what in ("theirs.safetensors", two[1])]  # fmt: skip
    assert against[0] == pytest.approx(against[1], rel=1e-6)
    opened = open_reference(Path("theirs.safetensors"))
    assert opened.about["command"] == f"qpass reference {two[1]}"


def test_a_reference_of_another_protocol(two: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    """It is refused with what differs, in the error of a user's mistake."""
    out = str(tmp_path / "t.safetensors")
    assert main(["reference", two[1], "--resize", "tensorflow", "--name", "real", "--out", out]) == 0
    assert main(["measure", two[0], "--against", out]) == 2
    error = capsys.readouterr().err
    assert "reference 'real' was measured differently: resize 'tensorflow' against 'pytorch'" in error
    assert "`qpass reference IMAGES --resize pytorch --precision float32 --out FILE`" in error


def test_a_strangers_metric(tmp_path: Path, photos: Photos, capsys: Capture) -> None:
    """An evaluator that defines `measure` alone is a metric of `qpass measure`, with its options."""
    (tmp_path / "bright.py").write_text(PLUGIN)
    images = photos("a", 20)
    args = (str(images), "--metrics", "brightness", "--plugin", str(tmp_path / "bright.py"), "--set", "scale=2")
    assert measured(capsys, *args)["brightness"] == pytest.approx(2 * np.load(images)["images"].mean())


MISTAKES = [
    (["--metrics", "fdi"], "unknown metric 'fdi', did you mean 'fd' or 'fid'?"),
    (["--metrics", "zzz"], "known: class_accuracy, classifier_score, fd, fid, is, is_std, kid"),
    (["--metrics", ","], "--metrics: name at least one metric, as in fid,sfid"),
    ([], "fid compares with something; say with what: --against cifar10-train, or a folder"),
    (
        ["--against", "b.npz", "--resize", "torch"],
        "fid: resize must be one of 'pytorch', 'tensorflow', not 'torch'",
    ),
    (["--against", "b.npz", "--set", "splitz=3"], "no metric asked for has the option 'splitz'"),
    (["--against", "b.npz", "--set", "samples=1"], "`qpass measure --samples N` takes the first N of them"),
    (["--against", "b.npz", "--set", "fid.samples=1"], "option samples: it is how many images a recipe draws"),
    (["--against", "b.npz", "--set", "kid.seed=3"], "none of fid is 'kid'"),
    (["--against", "b.npz", "--set", "seed"], "--set: 'seed' is not KEY=VALUE"),
    (["--against", "b.npz", "--set", ".resize=x"], "--set '.resize=x': write KEY=VALUE"),
    (["--against", "torchvision:FakeData:x"], "torchvision's FakeData cannot be opened in 'x'"),
    (["--against", "nowhere"], "there are no images 'nowhere'"),
    (["--against", "b.npz", "--samples", "0"], "--samples: 0 is not in the range"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_mistakes(
    args: list[str], message: str, thumbnail: list[int], photos: Photos, capsys: Capture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each is answered with the rule and a way out, exit code 2, and before any image is looked at."""
    photos("a", 20), photos("b", 20)
    monkeypatch.chdir(tmp_path)
    assert main(["measure", "a.npz", *args]) == 2
    assert message in capsys.readouterr().err
    assert thumbnail == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "a.npz"], "--out: 'a.npz' must end in .safetensors"),
        (["--out", "no/a.safetensors"], "--out: there is no folder 'no'; create it first"),
        (["--metric", "lpips"], "evaluator 'lpips' compares with nothing, so there is no reference to make"),
        (["--metric", "fidd"], "unknown metric 'fidd', did you mean 'fid'"),
    ],
)
def test_mistakes_of_reference(
    args: list[str], message: str, thumbnail: list[int], photos: Photos, capsys: Capture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Likewise, and no file is left."""
    photos("a", 20)
    monkeypatch.chdir(tmp_path)
    assert main(["reference", "a.npz", *args]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
