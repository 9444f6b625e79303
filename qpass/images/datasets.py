"""Data sets of torchvision, and of Hugging Face's `datasets`, that are already on this machine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qpass.errors import did_you_mean
from qpass.evaluator import EvaluationError
from qpass.images.contract import Images, Pictures, Say, stacked
from qpass.images.folder import below, files_fingerprint
from qpass.images.pixels import Reader


class ItemImages(Images):
    """Any sequence that gives images of PIL's by number."""

    def __init__(
        self, label: str, name: str, root: Path, items: Sequence[Any], picture: Callable[[Any], Any], say: Say
    ) -> None:
        self.label, self._name, self.root = label, name, root
        self.items, self.picture, self.say = items, picture, say
        if not len(items):
            raise EvaluationError(f"{label} holds no images")

    @property
    def name(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self.items)

    def fingerprint(self) -> str:
        files = sorted(below(self.root))
        return f"{self.label} {len(self)} {files_fingerprint(self.root, files)}"

    def read(self, start: int, stop: int) -> Iterator[Pictures]:
        reader = Reader(self.label, self.say)

        def one(index: int) -> Pictures:
            label = f"image {index} of {self.label}"
            try:
                image = self.picture(self.items[index])
                image.load()
            except (OSError, SyntaxError, ValueError) as error:
                raise EvaluationError(f"{label} cannot be read: {error}") from error
            return reader.picture(image, label)

        return stacked(one(index) for index in range(start, stop))


def torchvision_images(text: str, say: Say) -> Images:
    """`torchvision:CLASS:ROOT[:SPLIT]`, for example `torchvision:CIFAR10:data:train`. Nothing is downloaded."""
    from torchvision import datasets

    name, root, split = _parts(text, "torchvision:CLASS:ROOT[:SPLIT]")
    found = getattr(datasets, name, None)
    if not isinstance(found, type):
        raise EvaluationError(f"unknown torchvision data set {name!r}, {did_you_mean(name, datasets.__all__)}")
    cls: Callable[..., Any] = found
    takes = inspect.signature(cls).parameters
    options: dict[str, Any] = {}
    if split and "train" in takes:
        if split not in ("train", "test"):
            raise EvaluationError(f"torchvision's {name} has the splits train and test, not {split!r}")
        options["train"] = split == "train"
    elif split:
        options["split"] = split
    try:
        items = cls(root, **options)
        len(items)  # a few have none, or find out here that their files are not there
    except Exception as error:  # each data set fails in its own way
        raise EvaluationError(
            f"torchvision's {name} cannot be opened in {root!r}: {' '.join(str(error).split())}; download it there "
            f"first, with torchvision.datasets.{name}({root!r}, download=True)"
        ) from error
    return ItemImages(
        f"data set {text!r}", f"{name}-{split}".strip("-"), Path(root), items, lambda item: item[0], say
    )


def hugging_face_images(text: str, say: Say) -> Images:
    """`datasets:FOLDER[:SPLIT]`, a folder that `save_to_disk` wrote. Nothing is downloaded."""
    try:
        import datasets
    except ImportError as error:
        raise EvaluationError(f"{text!r} needs the package `datasets`; pip install 'qpass[datasets]'") from error
    path, split, _ = _parts(f"{text}::", "datasets:FOLDER[:SPLIT]")
    if not Path(path).is_dir():
        raise EvaluationError(f"{text!r}: there is no folder {path!r}")
    try:
        loaded = datasets.load_from_disk(path)
    except Exception as error:  # whatever a folder of something else leads to
        raise EvaluationError(
            f"{text!r} cannot be opened: {' '.join(str(error).split())}; write it with save_to_disk, or give the "
            "folder itself where it holds image files"
        ) from error
    if isinstance(loaded, dict):
        split = split or (next(iter(loaded)) if len(loaded) == 1 else split)
        if split not in loaded:
            known = did_you_mean(split, loaded) if split else f"known: {', '.join(loaded)}"
            raise EvaluationError(f"{text!r}: which split? {known}; write datasets:{path}:SPLIT")
        loaded = loaded[split]
    columns = [column for column, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise EvaluationError(f"{text!r} has no column of images; its columns are {', '.join(loaded.features)}")
    name = "-".join(part for part in (Path(path).resolve().name, split) if part)
    return ItemImages(f"data set {text!r}", name, Path(path), loaded, lambda row: row[columns[0]], say)


def _parts(text: str, form: str) -> tuple[str, str, str]:
    _, *rest = text.split(":")
    if len(rest) < 2 or not all(rest[:1]):
        raise EvaluationError(f"{text!r} must be written {form}")
    return rest[0], rest[1], rest[2] if len(rest) > 2 else ""
