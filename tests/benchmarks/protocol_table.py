"""Prints where the tools differ before the network, and by how much, as markdown.

`QPASS_DATA=... python tests/benchmarks/protocol_table.py`: the same CIFAR-10 images through each tool's own
preprocessing code, then all through one network on the same weights, so that whatever differs is preprocessing.
ADM's is inside a TensorFlow 1 graph; torch-fidelity's port stands for it, which its authors report equal to the bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from cleanfid.resize import build_resizer, make_resizer
from frechet import fid
from qpass_evaluators.networks import Inception, inception_graph, inception_weights, resize
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from qpass.images import open_images

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluators" / "networks"))
import peers

BATCH = 16
WHAT = {
    "pytorch-fid": ("bilinear, half-pixel centres", "no", "x / 127.5 - 1", "torch, fp32"),
    "torch-fidelity, ADM": ("bilinear, no half-pixel centres", "no", "(x - 128) / 128", "in the graph, fp32"),
    "clean-fid": (
        "bicubic, half-pixel centres",
        "yes",
        "(x - 128) / 128",
        "PIL, fp32 by channel, clipped to 0..255",
    ),
    "clean-fid legacy_pytorch": ("bilinear, half-pixel centres", "no", "x / 127.5 - 1", "torch, fp32"),
    "PIL to uint8, then pytorch-fid": ("bicubic, half-pixel centres", "yes", "x / 127.5 - 1", "rounded to uint8"),
}


@lru_cache
def _pytorch_fid() -> torch.nn.Module:
    net = peers.pytorch_fid()
    net.last_needed_block, net.output_blocks = 0, [0]
    net.blocks[0] = torch.nn.Identity()  # so that it gives what its first block would be given
    return net


def pytorch_fid(images: np.ndarray) -> Tensor:
    return _pytorch_fid()(planes(images) / 255)[0]


def torch_fidelity(images: np.ndarray) -> Tensor:
    size = (resize.SIZE, resize.SIZE)
    return (interpolate_bilinear_2d_like_tensorflow1x(planes(images), size=size, align_corners=False) - 128) / 128


def clean_fid(images: np.ndarray) -> Tensor:
    return (planes(_each(build_resizer("clean"), images)) - 128) / 128


def clean_fid_legacy(images: np.ndarray) -> Tensor:
    """Its network here is pytorch-fid's, without the resize."""
    return planes(_each(build_resizer("legacy_pytorch"), images)) / 255 * 2 - 1


def through_png(images: np.ndarray) -> Tensor:
    """What users do who resize before they save: clean-fid's own filter, with its result rounded."""
    size = (resize.SIZE, resize.SIZE)
    return planes(_each(make_resizer("PIL", True, "bicubic", size), images)) / 255 * 2 - 1


TOOLS: dict[str, Callable[[np.ndarray], Tensor]] = dict(
    zip(WHAT, (pytorch_fid, torch_fidelity, clean_fid, clean_fid_legacy, through_png), strict=True)
)


def planes(images: np.ndarray) -> Tensor:
    """N x H x W x 3 to fp32 N x 3 x H x W."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()


def _each(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    return np.stack([function(image) for image in images])


def features(images: np.ndarray, before: Callable[[np.ndarray], Tensor]) -> np.ndarray:
    """Pool features of images that have gone through a tool's preprocessing."""
    network = Inception()
    weights = inception_weights.load(
        network.path, network.fingerprint(), torch.float32, torch.device("cpu"), BATCH
    ).convolutions
    found = []
    for start in range(0, len(images), BATCH):
        x = before(images[start : start + BATCH]).contiguous(memory_format=torch.channels_last)
        stems = torch.cat([inception_graph.stem(weights, some) for some in x.split(2)])
        found.append(inception_graph.body(weights, stems)[0])
    return torch.cat(found).numpy()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    images = next(open_images("cifar10-test").batches(parser.parse_args().images))
    found = {name: features(images, before) for name, before in TOOLS.items()}
    print("| tool | resize | antialias | values | done by |")
    print("| --- | --- | --- | --- | --- |")
    for name, facts in WHAT.items():
        print(f"| {name} | " + " | ".join(facts) + " |")
    print(f"\nFeatures apart, |a - b| / |b|, and FID between the two, on the same {len(images)} images:\n")
    print("| a \\ b | " + " | ".join(found) + " |")
    print("|" + " --- |" * (1 + len(found)))
    for name, a in found.items():
        cells = (
            "-" if name == other else f"{np.linalg.norm(a - b) / np.linalg.norm(b):.2%}, {fid(a, b):.2f}"
            for other, b in found.items()
        )  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
