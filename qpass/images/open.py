"""Find images by what a user calls them: a folder, a NumPy file, a data set."""

from __future__ import annotations

from pathlib import Path

from qpass.errors import did_you_mean
from qpass.evaluator import EvaluationError
from qpass.images.arrays import ArrayImages
from qpass.images.cifar10 import SHEETS, Cifar10Images
from qpass.images.contract import Images, Say
from qpass.images.datasets import hugging_face_images, torchvision_images
from qpass.images.folder import FolderImages

FORMS = """\
a folder of PNG, JPEG or WebP files, an .npy or .npz file, torchvision:CLASS:ROOT[:SPLIT], datasets:FOLDER[:SPLIT], \
cifar10-train or cifar10-test"""


def open_images(text: str, say: Say = lambda line: None) -> Images:
    """The images that `text` names; what they are converted from is told to `say`."""
    if not text:
        raise EvaluationError(f"no images are named, as the text is empty; give {FORMS}")  # not those of "."
    if text in SHEETS:
        return Cifar10Images(text)
    if text.startswith("torchvision:"):
        return torchvision_images(text, say)
    if text.startswith("datasets:"):
        return hugging_face_images(text, say)
    path = Path(text)
    if path.is_dir():
        return FolderImages(path, say)
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        return ArrayImages(path, say)
    if path.exists():
        raise EvaluationError(f"{text!r} holds no images that qpass can read; give {FORMS}")
    near = did_you_mean(text, SHEETS)
    hint = f", {near}" if near.startswith("did") else ""
    raise EvaluationError(f"there are no images {text!r}{hint}; give {FORMS}")
