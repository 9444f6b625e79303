"""A folder's images are found where people put them: behind links, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qpass.evaluator import EvaluationError
from qpass.images import open_images
from qpass.images.folder import FolderImages


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)


def paths(root: Path) -> list[str]:
    found = open_images(str(root))
    assert isinstance(found, FolderImages)
    return [file.relative_to(root).as_posix() for file in found.files]


def test_links_are_followed(tmp_path: Path) -> None:
    """Of class folders and of single files; one that leads nowhere is no image."""
    write(tmp_path / "elsewhere" / "deep" / "1.png")
    write(tmp_path / "images" / "dogs" / "2.png")
    root = tmp_path / "images"
    (root / "cats").symlink_to(tmp_path / "elsewhere")
    (root / "3.png").symlink_to(tmp_path / "elsewhere" / "deep" / "1.png")
    (root / "4.png").symlink_to(tmp_path / "nowhere.png")
    assert paths(root) == ["3.png", "cats/deep/1.png", "dogs/2.png"]
    assert len(next(open_images(str(root)).batches(9))) == 3


def test_links_in_a_circle(tmp_path: Path) -> None:
    """Each image is found once."""
    root = tmp_path / "images"
    write(root / "a" / "1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b").symlink_to(root / "b")
    assert paths(root) == ["a/1.png"]


def test_only_links_in_a_circle(tmp_path: Path) -> None:
    """Hold no images."""
    (tmp_path / "up").symlink_to(tmp_path)
    with pytest.raises(EvaluationError, match="holds no images"):
        open_images(str(tmp_path))


def test_a_data_set_behind_a_link_is_told_apart(tmp_path: Path) -> None:
    """torchvision follows links, and so does what says whether the images are still the same."""
    write(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cats").symlink_to(tmp_path / "elsewhere")
    images = open_images(f"torchvision:ImageFolder:{tmp_path / 'images'}")
    before = images.fingerprint()
    Image.new("RGB", (40, 4)).save(tmp_path / "elsewhere" / "1.png")
    assert images.fingerprint() != before
