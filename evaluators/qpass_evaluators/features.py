"""Features of images, kept on disk in shards as they are computed: one extraction serves every metric.

A shard holds all outputs of the network for `ROWS` images. An extraction that was interrupted goes on with the next
shard; in memory are one shard's images and features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors import safe_open
from torch import Tensor

from qpass.evaluator import EvaluationError
from qpass.files import checksum
from qpass.images import Images
from qpass.kept import keep, kept
from qpass.measuring import Bench
from qpass.source import source_hash
from qpass_evaluators.population import Population
from qpass_evaluators.statistics.moments import Moments, gather

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork

ROWS = 256  # images in each shard; a multiple of every network's batch, so that features do not depend on it


@attrs.frozen(kw_only=True, eq=False)
class Shard:
    """Features of consecutive images by output, N x D; the images' size, and a hash of their pixels."""

    features: Mapping[str, Tensor]
    size: str
    pixels: str

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))


@attrs.frozen(kw_only=True, eq=False)
class Features(Population):
    """The features of all images, in a folder."""

    images: Images
    network: FeatureNetwork
    folder: Path
    about: Mapping[str, str]  # size and digest

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def size(self) -> str:
        return self.about["size"]

    @property
    def digest(self) -> str:
        return self.about["digest"]

    def protocol(self) -> Mapping[str, Any]:
        return self.network.protocol()

    def moments(self, output: str) -> Moments:
        return gather(self.parts(output), self.network.dimensions()[output])

    def rows(self, output: str) -> Tensor:
        return torch.cat(list(self.parts(output)))

    def parts(self, output: str) -> Iterator[Tensor]:
        """The features in order, shard by shard."""
        for index in range(math.ceil(self.count / ROWS)):
            with safe_open(place(self.folder, index), "pt") as file:
                yield file.get_tensor(output)


def extract(network: FeatureNetwork, images: Images, bench: Bench) -> Features:
    """The features of all images; those that are already on disk are not computed again."""
    folder = bench.folder / "features" / mark(network, images, bench)
    total = math.ceil(len(images) / ROWS)
    done = 0
    size, digest = "", ""
    while done < total and (shard := read(place(folder, done))) is not None:
        size, digest = shard.size, chained(digest, shard.pixels)
        done += 1
    for index, shard in enumerate(shards(network, images, bench, start=done, size=size), done):
        keep(place(folder, index), shard.features, {"size": shard.size, "pixels": shard.pixels})
        size, digest = shard.size, chained(digest, shard.pixels)
    return Features(images=images, network=network, folder=folder, about={"size": size, "digest": digest[:16]})


def mark(network: FeatureNetwork, images: Images, bench: Bench, **more: Any) -> str:
    """A hash of all that features depend on, code and libraries included, and of what else a caller names."""
    from qpass.run.fingerprint import own_code, versions

    code = {"qpass": source_hash("qpass"), **own_code(network)}  # the former reads the images
    seen = {"images": images.fingerprint(), "protocol": dict(network.protocol()), "device": bench.device.type}
    return checksum({**seen, "code": code, "versions": versions(), **more})[:16]


def shards(
    network: FeatureNetwork, images: Images, bench: Bench, start: int = 0, size: str = ""
) -> Iterator[Shard]:
    """The features of the images from shard number `start` on; those before, if any, have images of `size`."""
    first = start * ROWS
    if first >= len(images):
        return
    with bench.progress.task(f"features of {images.name}", len(images) - first) as task:
        for batch in images.batches(ROWS, first):
            found = f"{batch.shape[1]}x{batch.shape[2]}"
            if found != (size := size or found):  # a source read from here on knows nothing of those before
                raise EvaluationError(
                    f"{images.name}: images must be of one size, but from number {first} on they are {found}, and "
                    f"those before are {size}; resize them, or leave the odd ones out"
                )
            features = network.features(batch, bench.device)
            yield Shard(features=features, size=size, pixels=hashlib.sha256(batch.tobytes()).hexdigest())
            task.advance(len(batch))


def place(folder: Path, index: int) -> Path:
    """Where a shard is kept."""
    return folder / f"{index:06d}.safetensors"


def read(file: Path) -> Shard | None:
    """A shard, if it is there and whole."""
    if (found := kept(file)) is None:
        return None
    tensors, about = found
    return Shard(features=tensors, size=about["size"], pixels=about["pixels"])


def chained(digest: str, pixels: str) -> str:
    """The hash of all images so far, from that of all before and that of one shard."""
    return hashlib.sha256(f"{digest} {pixels}".encode()).hexdigest()
