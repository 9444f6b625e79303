"""Prints how far FID moves from one tool to another on the same images, as markdown.

`QPASS_DATA=... python tests/benchmarks/features_agreement.py --images 10000`: the first images of CIFAR-10's training
set against as many of its test set; both sides by the same tool. Peers are run in fp32, which takes most of the time;
`--peers 0` leaves them out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from frechet import fid
from qpass_evaluators.networks import Inception

from qpass.images import open_images

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluators" / "networks"))
import peers

Extract = Callable[[np.ndarray], np.ndarray]
BATCH = 16


def ours(resize: str, precision: str) -> Extract:
    network = Inception(resize=resize, precision=precision)
    return lambda images: network.features(images)["pool"].numpy()


def pytorch_fid() -> Extract:
    net = peers.pytorch_fid()
    return lambda images: _batched(images, lambda x: net(x.float() / 255)[0].flatten(1))


def torch_fidelity() -> Extract:
    net = peers.torch_fidelity()
    return lambda images: _batched(images, lambda x: net(x)[0])


PEERS = {"pytorch": ("pytorch-fid", pytorch_fid), "tensorflow": ("torch-fidelity", torch_fidelity)}


def _batched(images: np.ndarray, run: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    return torch.cat([run(x.contiguous()) for x in planes.split(BATCH)]).numpy()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--resizes", nargs="+", default=list(PEERS), choices=list(PEERS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides = [next(open_images(name).batches(options.images)) for name in ("cifar10-train", "cifar10-test")]
    print(f"CIFAR-10, {options.images} images of train against {options.images} of test\n")
    print("| resize | tool | FID | from ours fp32 | features apart, relative | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for resize in options.resizes:
        peer, make = PEERS[resize]
        base: tuple[float, np.ndarray] | None = None
        for tool, extract in (
            ("qpass float32", ours(resize, "float32")),
            ("qpass bfloat16", ours(resize, "bfloat16")),
            *([(peer, make())] if options.peers else []),
        ):
            start = time.perf_counter()
            a, b = (extract(side) for side in sides)
            seconds, value = time.perf_counter() - start, fid(a, b)
            first, features = base = base or (value, a)
            apart = np.linalg.norm(a - features) / np.linalg.norm(features)
            print(
                f"| {resize} | {tool} | {value:.4f} | {value - first:+.6f} | {apart:.1e} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
