"""Images drawn from a model, kept on disk batch by batch: an interrupted drawing goes on with the next batch.

They lie under a fingerprint of all that determines them. A full batch is shared by everyone who asks for more images
than it ends with; the last, shorter one belongs to the number asked for, as its size has a say in its bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import numpy as np
import torch
from attrs import validators as v
from torch.fx import GraphModule

from qpass.analysis import Analysis
from qpass.errors import ArtifactError
from qpass.files import write_file
from qpass.images.contract import Images, Pictures
from qpass.manager import PassContext
from qpass.sampling import Sampling

Range = tuple[int, int]


@attrs.frozen(kw_only=True, eq=False)
class KeptImages(Images):
    """Batches in a folder, one file for each."""

    folder: Path
    title: str
    ranges: tuple[Range, ...]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.title

    def __len__(self) -> int:
        return self.ranges[-1][1]

    def fingerprint(self) -> str:
        return f"{self.folder.name}[:{len(self)}]"

    def read(self, start: int, stop: int) -> Iterator[Pictures]:
        for begin, end in self.ranges:
            if end > start and begin < stop:
                yield self.load((begin, end))[max(start - begin, 0) : stop - begin]

    def protocol(self) -> Mapping[str, Any]:
        return {"images": len(self), **self.facts}

    def file(self, part: Range) -> Path:
        return self.folder / f"{part[0]:07d}-{part[1]:07d}.npz"

    def load(self, part: Range) -> Pictures:
        images: Pictures = np.load(self.file(part))["images"]
        return images

    def whole(self, part: Range) -> bool:
        """Whether the batch is there; the file's own checksum says whether it is undamaged."""
        try:
            return len(self.load(part)) == part[1] - part[0]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False

    def keep(self, part: Range, images: Pictures) -> None:
        file = io.BytesIO()
        np.savez(file, images=images)
        write_file(self.file(part), file.getvalue())


@attrs.frozen(kw_only=True)
class DrawnImages(Analysis[Images]):
    """Images 0 to count - 1 of the recipe's sampling, drawn by the graph, on disk."""

    name: ClassVar[str] = "drawn-images"
    count: int = attrs.field(validator=v.ge(1), metadata={"help": "images to draw"})

    def compute(self, graph: GraphModule, ctx: PassContext) -> Images:
        batch = ctx.sampling.batch
        kept = KeptImages(
            folder=ctx.shared / "images" / identity(graph, ctx),
            title="images of the original" if graph is ctx.reference else "images of the quantized",
            ranges=tuple((start, min(start + batch, self.count)) for start in range(0, self.count, batch)),
            facts=facts(ctx.sampling, ctx.seed),
        )
        for first, last in gaps([kept.whole(part) for part in kept.ranges]):
            begin, end = kept.ranges[first][0], kept.ranges[last - 1][1]
            batches = ctx.model.sample(
                graph,
                seed=ctx.seed,
                first=begin,
                count=end - begin,
                sampling=ctx.sampling,
                device=ctx.device,
                progress=ctx.progress,
                title=kept.name,
            )
            with torch.no_grad():
                for part, images in zip(kept.ranges[first:last], batches, strict=True):
                    kept.keep(part, images.numpy())
        return kept


@attrs.frozen(kw_only=True)
class OriginalImages(DrawnImages):
    """The same images, from the same noise, drawn by the full-precision teacher."""

    name: ClassVar[str] = "original-images"
    of: ClassVar[Literal["reference", "graph"]] = "reference"


def facts(sampling: Sampling, seed: int) -> dict[str, Any]:
    """How images are drawn, for the protocol of whatever is measured on them."""
    from qpass.recipe.structure import to_data

    how = dict(to_data(sampling))
    how.pop("batch")  # the same images but for a rounding of one level in a thousand values
    sampler = how.pop("scheduler")
    return {"sampler": sampler, **how, "seed": seed, "rounding": "[-1, 1] to 0..255, to nearest"}


def identity(graph: GraphModule, ctx: PassContext) -> str:
    """A hash of all that determines the images: the graph with its tensors, how it is sampled, code and versions.

    It is that of what an artifact would hold: a graph that was kept and loaded again has other node names.
    """
    from qpass.artifact.folder import state
    from qpass.artifact.graph_json import graph_to_json
    from qpass.recipe.structure import to_data
    from qpass.run.fingerprint import digest, ops_code, own_code, versions
    from qpass.source import source_hash

    try:
        drawing = json.dumps(graph_to_json(graph, ctx.catalog.ops), sort_keys=True)
    except ArtifactError:  # no artifact can hold it, so none will bring it back under other names
        drawing = graph.code
    total = hashlib.sha256(drawing.encode())
    for name, tensor in sorted(state(graph).items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    model = {**to_data(ctx.model), "weights": ctx.model.fingerprint(), "code": own_code(ctx.model)}
    code = {"qpass": source_hash("qpass"), **ops_code(graph, ctx.catalog.ops)}
    drawn = [to_data(ctx.sampling), ctx.seed, ctx.device.type, code, versions()]
    return digest([total.hexdigest(), model, drawn])


def gaps(there: list[bool]) -> Iterator[Range]:
    """The runs of places that are not there, each as (first, one past the last).

    >>> list(gaps([True, False, False, True, False]))
    [(1, 3), (4, 5)]
    """
    begin: int | None = None
    for index, found in enumerate([*there, True]):
        if not found and begin is None:
            begin = index
        elif found and begin is not None:
            yield begin, index
            begin = None
