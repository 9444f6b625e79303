"""A reference stands for its images: the same figures, from a file that says how it was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from qpass_evaluators import against, features, reference
from qpass_evaluators.features import extract
from qpass_evaluators.fid import Fid
from qpass_evaluators.kid import Kid
from qpass_evaluators.networks import Inception
from qpass_evaluators.reference import content_hash, make_reference, open_reference
from qpass_evaluators.statistics.frechet import frechet
from thumbnail import Failing, PowerError, Thumbnail

from qpass.evaluator import EvaluationError
from qpass.images import open_images
from qpass.measuring import Bench

Photos = Callable[..., Path]
ABOUT = {"name": "mine", "command": "qpass reference mine", "rows": 0}


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ROWS", 32)
    monkeypatch.setattr(reference, "ROWS", 32)
    monkeypatch.setattr(reference, "EVERY", 1)


@pytest.fixture
def make(photos: Photos, tmp_path: Path) -> Callable[..., Path]:
    """Writes the reference of 100 images."""

    def write(network: Any = Thumbnail(), name: str = "mine", bench: Bench | None = None, **about: Any) -> Path:  # noqa: B008
        bench = bench or Bench(folder=tmp_path / "part")
        if not (tmp_path / "real.npz").exists():
            photos("real", 100)
        images = open_images(str(tmp_path / "real.npz"))
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(make_reference(network, images, bench, {**ABOUT, "name": name, **about}))
        return file

    return write


def test_it_holds_the_moments(make: Callable[..., Path], photos: Photos, tmp_path: Path) -> None:
    """Of every output, to fp32's precision; half the covariance is stored."""
    opened = open_reference(make())
    seen = extract(Thumbnail(), open_images(str(photos("real", 100))), Bench(folder=tmp_path))
    for output in ("pool", "spatial"):
        ours, theirs = opened.moments(output), seen.moments(output)
        assert torch.allclose(ours.mean, theirs.mean, rtol=0, atol=1e-14)
        assert torch.allclose(ours.covariance, theirs.covariance, rtol=1e-6)
    assert (opened.name, opened.count, opened.size) == ("mine", 100, "8x8")
    assert opened.protocol() == Thumbnail().protocol()
    assert opened.about["command"] == "qpass reference mine"


def test_interrupted_and_resumed(thumbnail: list[int], make: Callable[..., Path], tmp_path: Path) -> None:
    """Killed once and resumed, the file is the same to the byte, and no shard before the last checkpoint is redone."""
    whole = make(rows=10).read_bytes()
    thumbnail.clear()
    torn = tmp_path / "torn"
    with pytest.raises(PowerError):
        make(rows=10, bench=Bench(folder=torn, progress=Failing(after=2)))
    assert make(rows=10, bench=Bench(folder=torn)).read_bytes() == whole
    assert thumbnail == [32, 32, 32, 4]


def test_features_that_are_kept(make: Callable[..., Path], photos: Photos, tmp_path: Path) -> None:
    """They are those of images spread evenly over the set."""
    kept = open_reference(make(rows=7)).rows("pool")
    seen = extract(Thumbnail(), open_images(str(photos("real", 100))), Bench(folder=tmp_path))
    assert torch.equal(kept, seen.rows("pool")[torch.arange(7) * 100 // 7])


def test_fid_against_it(thumbnail: list[int], make: Callable[..., Path], photos: Photos, tmp_path: Path) -> None:
    """It is that against its images, to 1e-6."""
    images, bench = open_images(str(photos("drawn", 60, seed=5))), Bench(folder=tmp_path)
    values = [Fid(against=str(what)).measure(images, bench)[0].value for what in (make(), photos("real", 100))]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] > 0


def test_unlike_protocols_are_refused(thumbnail: list[int], make: Callable[..., Path]) -> None:
    """With what differs, and the command that makes the right one; before any image is looked at."""
    file = make(Thumbnail(precision="bfloat16"))
    thumbnail.clear()
    with pytest.raises(EvaluationError) as caught:
        Fid(against=str(file), resize="tensorflow").requires(None)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "reference 'mine' was measured differently: resize 'pytorch' against 'tensorflow'; precision 'bfloat16' "
        "against 'float32'; measure as it was, or make one that fits with `qpass reference IMAGES --resize "
        "tensorflow --precision float32 --out FILE`"
    )
    assert thumbnail == []


def test_statistics_are_not_features(thumbnail: list[int], make: Callable[..., Path]) -> None:
    """KID needs features; the error says which command keeps some. With some, it measures."""
    with pytest.raises(EvaluationError, match=r"`qpass reference mine --keep-features 5000`"):
        Kid(against=str(make())).requires(None)  # type: ignore[arg-type]
    Kid(against=str(make(rows=20))).requires(None)  # type: ignore[arg-type]


def test_shipped_references_by_name(
    thumbnail: list[int], make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several of one name the one that fits is taken; where none fits, the images are, or the error names them."""
    monkeypatch.delenv("QPASS_DATA", raising=False)
    make(name="cifar10-train")
    monkeypatch.setattr(against, "SHIPPED", make(Thumbnail(resize="tensorflow"), name="other").parent)
    for resize, name in (("pytorch", "cifar10-train"), ("tensorflow", "other")):
        found = against.reference(name, Thumbnail(resize=resize), "")
        assert found is not None
        assert found.protocol()["resize"] == resize
    with pytest.raises(EvaluationError, match="reference 'cifar10-train' was measured differently: resize"):
        against.reference("cifar10-train", Thumbnail(resize="tensorflow"), "")


def test_what_ships_for_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by name without any data: 50,000 images, both outputs, by the network that ships, and as covariances go."""
    monkeypatch.delenv("QPASS_DATA", raising=False)
    found = against.reference("cifar10-train", Inception(), "")
    assert found is not None
    assert (found.count, found.size) == (50_000, "32x32")
    for output, width in Inception().dimensions().items():
        moments = found.moments(output)
        assert moments.mean.shape == (width,)
        assert float(torch.linalg.eigvalsh(moments.covariance)[0]) > -1e-6  # fp32's rounding aside
        assert abs(frechet(moments, moments)) < 1e-6


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_damaged_files(make: Callable[..., Path], damage: str) -> None:
    """They are refused, with the command that makes them again."""
    from safetensors.torch import save_file

    file = make()
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(raw[:-100])
    elif damage == "changed":
        raw[-3] ^= 1
        file.write_bytes(bytes(raw))
    else:
        save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(EvaluationError, match="qpass reference"):
        open_reference(file)


def test_a_file_that_is_not_there(thumbnail: list[int], tmp_path: Path) -> None:
    """Named, with the command that makes one."""
    with pytest.raises(EvaluationError, match=r"there is no reference .*none.safetensors'; make it with"):
        Fid(against=str(tmp_path / "none.safetensors")).requires(None)  # type: ignore[arg-type]


def test_a_file_is_read_whole_once(
    thumbnail: list[int],
    make: Callable[..., Path],
    photos: Photos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often a run asks for it; another file in its place is read again, and a damaged one is refused."""
    monkeypatch.delenv("QPASS_DATA", raising=False)
    file = make(name="real")
    monkeypatch.setattr(against, "SHIPPED", tmp_path)  # finds it by name, as it does what ships
    held: list[str] = []

    def counted(*content: Any) -> str:
        held.append(content_hash(*content))
        return held[-1]

    monkeypatch.setattr(reference, "content_hash", counted)
    evaluator, images = Fid(against="real"), open_images(str(photos("drawn", 20, seed=5)))
    evaluator.requires(None)  # type: ignore[arg-type]
    for _ in range(2):
        evaluator.fingerprint()
        evaluator.measure(images, Bench(folder=tmp_path / "work"))
    assert len(held) == 1
    before = evaluator.fingerprint()
    file.write_bytes(make(name="real", rows=5).read_bytes())
    assert evaluator.fingerprint() != before
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    with pytest.raises(EvaluationError, match="is damaged"):
        evaluator.fingerprint()
