"""Images come out of every source in order, from any place on; what is wrong with them is said with its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpass.evaluator import EvaluationError
from qpass.images import First, Images, open_images

Write = Callable[..., Path]
GRAY = "is grayscale; its one channel is repeated to three"


def numbered(count: int, size: int = 4) -> np.ndarray:
    """Image i is random, and holds i in its first value."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Writes images as files, in folders below one another."""

    def write(images: np.ndarray, suffix: str = ".png", digits: int = 3) -> Path:
        root = tmp_path / "images"
        for index, image in enumerate(images):
            file = root / f"part{index // 5}" / f"{index:0{digits}d}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, lossless=True)
        return root

    return write


def check(images: Images, expected: np.ndarray) -> None:
    """All of them, in batches of any size, from any place on."""
    assert len(images) == len(expected)
    for size in (1, 3, 100):
        for start in (0, 2, len(expected) - 1):
            batches = list(images.batches(size, start))
            assert all(len(batch) == size for batch in batches[:-1])
            assert np.array_equal(np.concatenate(batches), expected[start:])
    assert images.fingerprint() == images.fingerprint()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_a_folder(folder: Write, suffix: str) -> None:
    """Files are read in the order of their paths, folders below included."""
    check(open_images(str(folder(numbered(12), suffix))), numbered(12))


def test_a_folder_that_numbers_without_zeros(folder: Write) -> None:
    """The tenth follows the ninth, of files and of folders, so that pairs are those of folders with zeros."""
    check(open_images(str(folder(numbered(60), digits=1))), numbered(60))


@pytest.mark.parametrize("key", ["arr_0", "images"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz(tmp_path: Path, key: str, save: Callable[..., None]) -> None:
    """The array `arr_0`, as in ADM's batches, or `images`, among others."""
    save(tmp_path / "a.npz", **{"labels": np.arange(70), key: numbered(70)})
    check(open_images(str(tmp_path / "a.npz")), numbered(70))


def test_an_npy(tmp_path: Path) -> None:
    """A single array."""
    np.save(tmp_path / "a.npy", numbered(70))
    check(open_images(str(tmp_path / "a.npy")), numbered(70))


def test_the_first_few(tmp_path: Path) -> None:
    """A beginning of any source is a source."""
    np.save(tmp_path / "a.npy", numbered(70))
    check(First(open_images(str(tmp_path / "a.npy")), 66), numbered(70)[:66])
    check(First(open_images(str(tmp_path / "a.npy")), 100), numbered(70))
    check(First(First(open_images(str(tmp_path / "a.npy")), 66), 10), numbered(70)[:10])


def test_the_first_few_and_no_more(folder: Write, tmp_path: Path) -> None:
    """What is wrong beyond them is not looked at."""
    root = folder(numbered(12))
    (root / "part2" / "010.png").write_bytes(b"junk")
    check(First(open_images(str(root)), 10), numbered(12)[:10])
    np.save(tmp_path / "a.npy", numbered(70))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-100])
    check(First(open_images(str(tmp_path / "a.npy")), 66), numbered(70)[:66])
    assert "is cut short" in refusal(tmp_path / "a.npy")


def test_a_torchvision_data_set(tmp_path: Path) -> None:
    """Any class of torchvision that gives images, here a folder by class; splits are passed on."""
    for index, image in enumerate(numbered(6)):
        (tmp_path / str(index // 3)).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / str(index // 3) / f"{index}.png")
    check(open_images(f"torchvision:ImageFolder:{tmp_path}"), numbered(6))


def test_a_hugging_face_data_set(tmp_path: Path) -> None:
    """What `save_to_disk` wrote; of several splits, one must be named."""
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.fromarray(image) for image in numbered(6)], "label": list(range(6))}
    features = datasets.Features({"label": datasets.Value("int64"), "image": datasets.Image()})
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(str(tmp_path / "one"))
    check(open_images(f"datasets:{tmp_path / 'one'}"), numbered(6))
    datasets.DatasetDict({"a": saved, "b": saved}).save_to_disk(str(tmp_path / "two"))
    check(open_images(f"datasets:{tmp_path / 'two'}:b"), numbered(6))
    assert "which split? known: a, b; write datasets:" in refusal(f"datasets:{tmp_path / 'two'}")
    assert "write it with save_to_disk, or give the folder" in refusal(f"datasets:{tmp_path}")


def test_cifar10_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six sheets of 100 x 100 images, row by row, from the folder that QPASS_DATA names."""
    images = np.zeros((10_000, 32, 32, 3), np.uint8)
    images[..., 0], images[..., 1] = np.divmod(np.arange(10_000), 256)[0][:, None, None], np.arange(32)
    images[..., 2] = (np.arange(10_000) % 256)[:, None, None]
    sheet = images.reshape(100, 100, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(3200, 3200, 3)
    (tmp_path / "cifar10").mkdir()
    Image.fromarray(sheet).save(tmp_path / "cifar10" / "test.webp", lossless=True, quality=0, method=0)
    monkeypatch.setenv("QPASS_DATA", str(tmp_path))
    found = open_images("cifar10-test")
    assert len(found) == 10_000
    assert np.array_equal(next(found.batches(500, start=9_700)), images[9_700:])
    assert np.array_equal(next(First(found, 9_800).batches(500, start=9_700)), images[9_700:9_800])
    with pytest.raises(EvaluationError, match=r"there is no file .*train_1.webp"):
        open_images("cifar10-train")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "small"])
def test_a_damaged_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """It is named, with what to do."""
    file = tmp_path / "cifar10" / "test.webp"
    file.parent.mkdir()
    Image.fromarray(numbered(1, 64)[0]).save(file, lossless=True)
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "text": b"RIFFjunk", "cut": whole[:500], "small": whole}[damage])
    monkeypatch.setenv("QPASS_DATA", str(tmp_path))
    text = refusal("cifar10-test")
    assert text.startswith(f"CIFAR-10's sheet {str(file)!r} cannot be read: ")
    assert text.endswith("; copy it again from where it came")


def test_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without QPASS_DATA, the error says what to set."""
    monkeypatch.delenv("QPASS_DATA", raising=False)
    with pytest.raises(EvaluationError, match="QPASS_DATA, which is not set; set it to a folder with cifar10"):
        open_images("cifar10-train")


def refusal(path: Path | str) -> str:
    """The error about these images, in full."""
    with pytest.raises(EvaluationError) as caught:
        list(open_images(str(path)).batches(64))
    return str(caught.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    """Says what was looked for."""
    (tmp_path / "notes.txt").write_text("none")
    assert refusal(tmp_path).endswith(
        "holds no images; looked for .png, .jpg, .jpeg, .webp in it and the folders below"
    )


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_one_corrupt_file_among_many(folder: Write, damage: str) -> None:
    """It is named, whatever is wrong with it."""
    root = folder(numbered(200, 16))
    file = root / "part33" / "167.png"
    raw = file.read_bytes()
    file.write_bytes({"cut": raw[: len(raw) // 2], "text": b"not an image", "empty": b""}[damage])
    assert refusal(root).startswith(f"image {str(file)!r} cannot be read: ")


def test_sizes_that_differ(folder: Write) -> None:
    """The first odd one is named, beside the one it differs from."""
    root = folder(numbered(8))
    Image.new("RGB", (6, 4)).save(root / "part1" / "005.png")
    text = refusal(root)
    assert "images must be of one size, but image" in text
    assert "005.png' is 4 x 6 and image" in text
    assert "000.png' is 4 x 4" in text


def test_grayscale_is_repeated_with_a_warning(folder: Write, tmp_path: Path) -> None:
    """Once for the source, not for every file."""
    gray = numbered(5)[..., 0]
    np.save(tmp_path / "flat.npy", gray)
    np.save(tmp_path / "deep.npy", gray[..., None])
    for path in (folder(gray), tmp_path / "flat.npy", tmp_path / "deep.npy"):
        said: list[str] = []
        (batch,) = open_images(str(path), said.append).batches(64)
        assert np.array_equal(batch, np.repeat(gray[..., None], 3, axis=3))
        assert len(said) == 1
        assert GRAY in said[0]


def test_transparency(folder: Write, tmp_path: Path) -> None:
    """An opaque alpha channel is dropped; where anything shows through, the image is named."""
    alpha = np.concatenate([numbered(5), np.full((5, 4, 4, 1), 255, np.uint8)], axis=3)
    np.save(tmp_path / "a.npy", alpha)
    check(open_images(str(folder(alpha))), numbered(5))
    check(open_images(str(tmp_path / "a.npy")), numbered(5))
    alpha[3, 2, 2, 3] = 254
    np.save(tmp_path / "a.npy", alpha)
    assert "003.png' is partly transparent" in refusal(folder(alpha))
    assert "image 3 is partly transparent" in refusal(tmp_path / "a.npy")


def test_other_colours(tmp_path: Path) -> None:
    """CMYK is refused, since its conversion depends on who does it."""
    Image.new("CMYK", (4, 4)).save(tmp_path / "a.jpg")
    assert "has pixels of mode 'CMYK', not 8-bit RGB" in refusal(tmp_path)


ARRAYS = [
    (
        np.full((3, 4, 4, 3), 0.5),
        "images must be uint8, not float64; round them to 0..255 as a saved PNG would be",
    ),
    (np.zeros((3, 4, 4, 3), np.int32), "images must be uint8, not int32"),
    (np.zeros((3, 3, 4, 4), np.uint8).repeat(2, 3), "channels come last, but the array is 3 x 3 x 4 x 8"),
    (np.zeros((3, 4, 4, 2), np.uint8), "images must be N x H x W x 3, not 3 x 4 x 4 x 2"),
    (np.zeros((3, 4), np.uint8), "images must be N x H x W x 3, not 3 x 4"),
    (np.zeros((0, 4, 4, 3), np.uint8), "holds no images"),
    (np.asfortranarray(np.zeros((3, 4, 4, 3), np.uint8)), "is stored column by column"),
]


@pytest.mark.parametrize(("array", "message"), ARRAYS, ids=[message[:30] for _, message in ARRAYS])
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, message: str) -> None:
    """Each with what it is instead."""
    np.savez(tmp_path / "a.npz", arr_0=array)
    assert message in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_images(tmp_path: Path, bad: float) -> None:
    """The image is named by its number."""
    images = np.zeros((100, 4, 4, 3), np.float32)
    images[81, 1, 2, 0] = bad
    np.savez(tmp_path / "a.npz", images=images)
    assert refusal(tmp_path / "a.npz").endswith("image 81 holds values that are NaN or infinite")


def test_damaged_archives(tmp_path: Path) -> None:
    """A file that is cut short, holds other arrays, or is none."""
    np.savez(tmp_path / "a.npz", labels=np.arange(3))
    assert "must hold images as 'arr_0' or 'images'; it holds labels" in refusal(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK")
    assert "b.npz' cannot be read" in refusal(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", numbered(100))
    raw = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(raw[:-1000])
    assert "is cut short: it ends within image 64 to 100" in refusal(tmp_path / "c.npy")
    (tmp_path / "d.npy").write_bytes(b"junk" * 10)
    assert "is no NumPy array" in refusal(tmp_path / "d.npy")
    np.savez(tmp_path / "e.npz", images=numbered(100))
    raw = bytearray((tmp_path / "e.npz").read_bytes())
    raw[2000] ^= 1
    (tmp_path / "e.npz").write_bytes(bytes(raw))
    assert "e.npz' is damaged near image" in refusal(tmp_path / "e.npz")


def test_names_that_are_nothing(folder: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be given is listed; a near name is offered; empty text does not stand for the current folder."""
    monkeypatch.chdir(folder(numbered(3)))
    assert "no images are named, as the text is empty; give a folder of PNG" in refusal("")
    assert len(open_images(".")) == 3
    assert "there are no images 'nowhere'; give a folder of PNG" in refusal("nowhere")
    assert "did you mean 'cifar10-train'" in refusal("cifar10-trian")
    (tmp_path / "a.txt").write_text("x")
    assert "holds no images that qpass can read" in refusal(tmp_path / "a.txt")
    assert "unknown torchvision data set 'CIFAR11', did you mean 'CIFAR10'" in refusal("torchvision:CIFAR11:x")
    assert "download it there first" in refusal(f"torchvision:CIFAR10:{tmp_path}:train")
    assert "has the splits train and test, not 'val'" in refusal(f"torchvision:CIFAR10:{tmp_path}:val")
    assert "must be written torchvision:CLASS:ROOT" in refusal("torchvision:CIFAR10")
