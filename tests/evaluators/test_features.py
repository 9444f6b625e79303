"""Features are computed once, in shards on disk; interrupted, the same figures come out and nothing is done twice."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qpass_evaluators import features, reference
from qpass_evaluators.features import extract
from qpass_evaluators.networks.feature_network import FeatureNetwork
from qpass_evaluators.reference import make_reference
from thumbnail import Failing, PowerError, Thumbnail

from qpass.evaluator import EvaluationError
from qpass.images import open_images
from qpass.measuring import Bench
from qpass.run import fingerprint

Photos = Callable[..., Path]


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ROWS", 32)
    monkeypatch.setattr(reference, "ROWS", 32)


def test_they_are_the_networks(thumbnail: list[int], photos: Photos, tmp_path: Path) -> None:
    """All outputs of all images in order, with moments to match, and the images' size."""
    images = open_images(str(photos("a", 70)))
    seen = extract(Thumbnail(), images, Bench(folder=tmp_path))
    whole = next(images.batches(70))
    expected = Thumbnail().features(whole)
    for output, rows in expected.items():
        assert torch.equal(seen.rows(output), rows)
        np.testing.assert_allclose(seen.moments(output).covariance, np.cov(rows.double().T), atol=1e-12)
    assert (seen.count, seen.size, seen.name) == (70, "8x8", "a")


def test_twice_is_once(thumbnail: list[int], photos: Photos, tmp_path: Path) -> None:
    """Asked again, whether by this process or another, nothing is computed."""
    path = str(photos("a", 70))
    first = extract(Thumbnail(), open_images(path), Bench(folder=tmp_path))
    assert sum(thumbnail) == 70
    again = extract(Thumbnail(), open_images(path), Bench(folder=tmp_path))
    assert sum(thumbnail) == 70
    assert again.digest == first.digest


def test_interrupted_and_resumed(thumbnail: list[int], photos: Photos, tmp_path: Path) -> None:
    """Killed after every shard, the digest and the bytes are the same, and each image was seen once."""
    path = str(photos("a", 100))
    whole = extract(Thumbnail(), open_images(path), Bench(folder=tmp_path / "whole"))
    thumbnail.clear()
    for _ in range(4):
        with pytest.raises(PowerError):
            extract(Thumbnail(), open_images(path), Bench(folder=tmp_path / "torn", progress=Failing()))
    torn = extract(Thumbnail(), open_images(path), Bench(folder=tmp_path / "torn"))
    assert thumbnail == [32, 32, 32, 4]
    assert torn.digest == whole.digest
    assert torch.equal(torn.rows("pool"), whole.rows("pool"))


def test_a_damaged_shard_is_computed_again(thumbnail: list[int], photos: Photos, tmp_path: Path) -> None:
    """And what comes after it too, since the hash of the images goes through all."""
    path = str(photos("a", 100))
    whole = extract(Thumbnail(), open_images(path), Bench(folder=tmp_path))
    rows = whole.rows("pool")
    file = features.place(whole.folder, 1)
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(bytes(raw))
    thumbnail.clear()
    again = extract(Thumbnail(), open_images(path), Bench(folder=tmp_path))
    assert sum(thumbnail) == 68
    assert again.digest == whole.digest
    assert torch.equal(again.rows("pool"), rows)


@pytest.mark.parametrize("make", [extract, partial(make_reference, about={"name": "mine", "command": ""})])
def test_mixed_sizes_are_refused_twice(
    thumbnail: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., object]
) -> None:
    """Where the second size begins with a shard, what was kept of the first attempt does not let the second pass."""
    for module, name, value in ((features, "ROWS", 64), (reference, "ROWS", 64), (reference, "EVERY", 1)):
        monkeypatch.setattr(module, name, value)
    for index in range(70):
        side = 8 if index < 64 else 16
        Image.new("RGB", (side, side)).save(tmp_path / f"{index:02d}.png")
    for message in ("'.*64.png' is 16 x 16 and image '.*00.png' is 8 x 8", "on they are 16x16, and those before"):
        with pytest.raises(EvaluationError, match=f"images must be of one size.*{message}"):
            make(Thumbnail(), open_images(str(tmp_path)), Bench(folder=tmp_path / "work"))
    assert thumbnail == [32, 32]


OWN = """
import attrs, torch
from qpass_evaluators.networks.feature_network import FeatureNetwork

@attrs.frozen(kw_only=True)
class Own(FeatureNetwork):
    name = "own"

    def fingerprint(self):
        return "none"

    def protocol(self):
        return {"features": "own", "weights": "none", "resize": "none", "precision": "float32"}

    def dimensions(self):
        return {"pool": 3}

    def prepare(self, device):
        return lambda images: {"pool": FACTOR * torch.from_numpy(images).float().mean((1, 2))}
"""


def own(file: Path, factor: int) -> FeatureNetwork:
    """A network whose code lies in a file, read anew."""
    file.write_text(OWN.replace("FACTOR", str(factor)))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: FeatureNetwork = module.Own()
    return network


@pytest.mark.parametrize("change", ["code", "versions"])
def test_other_code_and_other_libraries_see_anew(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """In one folder, with one protocol: features and references are never those of what has changed since."""
    images, bench, file = (
        open_images(str(photos("a", 10))),
        Bench(folder=tmp_path / "work"),
        tmp_path / "own_net.py",
    )
    monkeypatch.setitem(sys.modules, file.stem, sys)  # so that it is as it was afterwards
    before = own(file, 1)
    first = extract(before, images, bench)
    reference.accumulate(before, images, bench, rows=2)
    if change == "code":
        network = own(file, 30)  # a file of another length: Python takes one of the same second and length as read
    else:
        network = before
        monkeypatch.setattr(fingerprint, "version", lambda name: "0")
    second, state = extract(network, images, bench), reference.accumulate(network, images, bench, rows=2)
    factor = 30 if change == "code" else 1
    assert second.folder != first.folder
    assert torch.allclose(second.rows("pool"), factor * first.rows("pool"))
    assert torch.allclose(state.moments["pool"].mean, factor * first.moments("pool").mean)
    assert len(list(bench.folder.glob("checkpoint-*"))) == 2


def test_nothing_is_mixed_up(thumbnail: list[int], photos: Photos, tmp_path: Path) -> None:
    """Other images and other protocols have features of their own in the same folder."""
    bench = Bench(folder=tmp_path)
    digests = [
        extract(network, open_images(str(photos(name, 10, seed))), bench).folder
        for name, seed, network in (
            ("a", 0, Thumbnail()), ("b", 1, Thumbnail()), ("c", 0, Thumbnail(resize="tensorflow")),
        )
    ]  # fmt: skip
    assert len(set(digests)) == 3
