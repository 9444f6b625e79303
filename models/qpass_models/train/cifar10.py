"""CIFAR-10 as two tensors, from the folder that torchvision keeps it in or from sheets of images under QPASS_DATA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import attrs
import numpy as np
import torch
from torch import Tensor

from qpass.errors import ModelError
from qpass.images.cifar10 import SHEETS, sheet

Split = Literal["train", "test"]


@attrs.frozen(kw_only=True, eq=False)
class Pictures:
    """`images` uint8, N x 3 x 32 x 32; `labels` int64, N."""

    images: Tensor
    labels: Tensor


def read(folder: Path | None, split: Split) -> Pictures:
    """The split, from `folder`, else from QPASS_DATA/cifar10."""
    root = folder or (Path(os.environ["QPASS_DATA"]) / "cifar10" if "QPASS_DATA" in os.environ else None)
    if root is None:
        raise ModelError(
            "no data to train on: give --data FOLDER, where torchvision keeps CIFAR-10 (the folder that holds "
            "cifar-10-batches-py; torchvision.datasets.CIFAR10(FOLDER, download=True) makes it), or set QPASS_DATA"
        )
    if (root / "labels.npz").is_file():
        return _sheets(root, split)
    if (root / "cifar-10-batches-py").is_dir():
        return _torchvision(root, split)
    raise ModelError(
        f"{str(root)!r} holds no CIFAR-10: neither cifar-10-batches-py, as torchvision keeps it, nor labels.npz "
        "beside sheets of images"
    )


def _torchvision(root: Path, split: Split) -> Pictures:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(root), train=split == "train")
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Pictures(images=images, labels=torch.tensor(data.targets))


def _sheets(root: Path, split: Split) -> Pictures:
    names = SHEETS[f"cifar10-{split}"]
    images = np.concatenate([sheet(root / f"{name}.webp") for name in names]).transpose(0, 3, 1, 2)
    with np.load(root / "labels.npz") as stored:
        labels = np.concatenate([stored[name] for name in names])
    return Pictures(images=torch.from_numpy(np.ascontiguousarray(images)), labels=torch.from_numpy(labels).long())
