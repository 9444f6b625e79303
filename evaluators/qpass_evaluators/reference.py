"""Statistics of a data set in one file, in place of its images: a safetensors file that carries its protocol.

It holds of every output of the feature network the mean (float64, D) and the upper triangle of the covariance (fp32,
D (D + 1) / 2), and, where asked for, the features of some images spread evenly over the set, which KID, precision and
recall need.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qpass.evaluator import EvaluationError
from qpass.files import checksum
from qpass.images import Images
from qpass.kept import hash_of, keep, kept
from qpass.measuring import Bench
from qpass.source import source_hash
from qpass_evaluators.features import ROWS, chained, mark, shards
from qpass_evaluators.population import Population
from qpass_evaluators.statistics.moments import Moments, moments_of, nothing, symmetric, upper

if TYPE_CHECKING:
    from qpass_evaluators.networks.feature_network import FeatureNetwork

SCHEMA = 1
EVERY = 8  # shards between two checkpoints of a long run


@attrs.frozen(kw_only=True, eq=False)
class Reference(Population):
    """An opened file. `about` is its metadata; tensors are read when they are asked for."""

    path: Path
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.about["name"])

    @property
    def count(self) -> int:
        return int(self.about["images"])

    @property
    def size(self) -> str:
        return str(self.about["size"])

    @property
    def digest(self) -> str:
        return str(self.about["hash"])

    def protocol(self) -> Mapping[str, Any]:
        protocol: Mapping[str, Any] = self.about["protocol"]
        return protocol

    def moments(self, output: str) -> Moments:
        tensors = self._tensors(f"{output}.mean", f"{output}.covariance")
        if tensors is None:
            held = ", ".join(self.about["dimensions"])
            raise EvaluationError(
                f"reference {self.name!r} holds nothing of the output {output!r}, only of {held}"
            )
        mean, triangle = tensors
        scatter = symmetric(triangle.double(), len(mean)) * max(self.count - 1, 1)
        return Moments(count=self.count, mean=mean, scatter=scatter)

    def rows(self, output: str) -> Tensor:
        tensors = self._tensors(f"{output}.rows")
        if tensors is None:
            raise EvaluationError(
                f"reference {self.name!r} holds mean and covariance alone, and this metric needs features; compare "
                "with the images themselves, or make a reference that keeps some with "
                f"`{self.about['command']} --keep-features 5000`"
            )
        return tensors[0]

    def _tensors(self, *names: str) -> tuple[Tensor, ...] | None:
        with safe_open(self.path, "pt") as file:
            held = set(file.keys())
            return tuple(file.get_tensor(name) for name in names) if held >= set(names) else None


def open_reference(path: Path) -> Reference:
    """The reference in a file; an `EvaluationError` where it is none, or damaged.

    It is read, and its hash held to its content, once for as long as the file stays as it is.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise EvaluationError(
            f"reference {str(path)!r} cannot be read: {error.strerror}; make it with `qpass reference`"
        ) from error
    return _opened(path, path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _opened(path: Path, place: Path, size: int, changed: int) -> Reference:
    """`place`, `size` and `changed` are there so that another file under that path is read again."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("qpass_reference", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise EvaluationError(
            f"reference {str(path)!r} cannot be read: {error}; make it again with `qpass reference`"
        ) from error
    if about.get("schema") != SCHEMA:
        what = f"of schema {about['schema']}, and this qpass reads {SCHEMA}" if about else "no reference of qpass"
        raise EvaluationError(f"file {str(path)!r} is {what}; make one with `qpass reference`")
    if about["hash"] != content_hash(tensors, about):
        raise EvaluationError(f"reference {str(path)!r} is damaged; make it again with `{about['command']}`")
    return Reference(path=path, about=about)


def content_hash(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """A hash of what a reference holds and of what determined it, in 16 hex digits."""
    known = {key: about[key] for key in ("images", "size", "pixels", "protocol", "dimensions")}
    return hashlib.sha256(f"{hash_of(tensors)} {checksum(known)}".encode()).hexdigest()[:16]


def make_reference(network: FeatureNetwork, images: Images, bench: Bench, about: Mapping[str, Any]) -> bytes:
    """The content of the reference file of these images. An interrupted making goes on from its last checkpoint."""
    state = accumulate(network, images, bench, rows=int(about.get("rows", 0)))
    tensors: dict[str, Tensor] = {}
    for output, moments in state.moments.items():
        tensors[f"{output}.mean"] = moments.mean
        tensors[f"{output}.covariance"] = upper(moments.covariance).float()
    tensors |= {f"{output}.rows": rows for output, rows in state.rows.items() if len(rows)}
    document = {
        "schema": SCHEMA,
        "name": about["name"],
        "command": about["command"],
        "images": len(images),
        "size": state.size,
        "pixels": state.digest,
        "protocol": dict(network.protocol()),
        "dimensions": dict(network.dimensions()),
        "rows": len(next(iter(state.rows.values()))),
    }
    document["hash"] = content_hash(tensors, document)
    content: bytes = save(tensors, metadata={"qpass_reference": json.dumps(document)})
    return content


@attrs.frozen(kw_only=True, eq=False)
class State:
    """How far the making of a reference has come."""

    done: int  # shards
    size: str
    digest: str
    moments: Mapping[str, Moments]
    rows: Mapping[str, Tensor]


def accumulate(network: FeatureNetwork, images: Images, bench: Bench, rows: int) -> State:
    """Moments of all images, and `rows` rows of features; checkpoints lie in the bench's folder."""
    # what it holds are moments, of which the network's own code need know nothing
    code = source_hash("qpass_evaluators")
    name = mark(network, images, bench, rows=rows, moments=code)
    file = bench.folder / f"checkpoint-{name}.safetensors"
    state = load_checkpoint(file) or State(
        done=0,
        size="",
        digest="",
        moments={output: nothing(width) for output, width in network.dimensions().items()},
        rows={output: torch.empty(0, width) for output, width in network.dimensions().items()},
    )
    total = math.ceil(len(images) / ROWS)
    wanted = chosen(len(images), rows)
    for shard in shards(network, images, bench, start=state.done, size=state.size):
        first = state.done * ROWS
        here = wanted[(wanted >= first) & (wanted < first + len(shard))] - first
        state = State(
            done=state.done + 1,
            size=shard.size,
            digest=chained(state.digest, shard.pixels),
            moments={o: m.merge(moments_of(shard.features[o])) for o, m in state.moments.items()},
            rows={o: torch.cat([r, shard.features[o][here]]) for o, r in state.rows.items()},
        )
        if state.done % EVERY == 0 or state.done == total:
            save_checkpoint(file, state)
    return state


def chosen(count: int, rows: int) -> Tensor:
    """The numbers of `rows` images spread evenly over `count`.

    >>> chosen(10, 4)
    tensor([0, 2, 5, 7])
    """
    return torch.arange(min(rows, count)) * count // max(min(rows, count), 1)


def save_checkpoint(file: Path, state: State) -> None:
    """Keep the state."""
    tensors = {f"{o}.mean": m.mean for o, m in state.moments.items()}
    tensors |= {f"{o}.scatter": m.scatter for o, m in state.moments.items()}
    tensors |= {f"{o}.rows": r for o, r in state.rows.items()}
    count = next(iter(state.moments.values())).count
    keep(file, tensors, {"done": state.done, "size": state.size, "digest": state.digest, "count": count})


def load_checkpoint(file: Path) -> State | None:
    """The state, if it is there and whole."""
    if (found := kept(file)) is None:
        return None
    tensors, about = found
    outputs = [name.removesuffix(".mean") for name in tensors if name.endswith(".mean")]
    return State(
        done=about["done"],
        size=about["size"],
        digest=about["digest"],
        moments={
            o: Moments(count=about["count"], mean=tensors[f"{o}.mean"], scatter=tensors[f"{o}.scatter"])
            for o in outputs
        },
        rows={o: tensors[f"{o}.rows"] for o in outputs},
    )
