"""Images drawn once and shared by every evaluator that looks at images."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs
import numpy as np
import torch
from attrs import validators as v
from torch.fx import GraphModule

from qpass.analysis import Analysis, Tensors
from qpass.manager import PassContext

Pictures = np.ndarray[Any, Any]  # uint8, N x H x W x 3


@attrs.frozen(kw_only=True)
class ReferenceImages(Analysis[Pictures]):
    """Images 0 to count - 1 of the recipe's sampling, drawn by the full-precision teacher."""

    name: ClassVar[str] = "reference-images"
    of: ClassVar[Literal["reference", "graph"]] = "reference"
    stored: ClassVar[bool] = True
    count: int = attrs.field(validator=v.ge(1), metadata={"help": "images to draw"})

    def compute(self, graph: GraphModule, ctx: PassContext) -> Pictures:
        return draw(graph, ctx, self.count, "images of the original")

    def merge(self, parts: list[Pictures]) -> Pictures:
        return np.concatenate(parts)

    def dump(self, value: Pictures) -> Tensors:
        return {"images": torch.from_numpy(value)}

    def restore(self, tensors: Tensors) -> Pictures:
        return tensors["images"].numpy()


@attrs.frozen(kw_only=True)
class GraphImages(Analysis[Pictures]):
    """The same images, from the same noise, drawn by the graph as it stands."""

    name: ClassVar[str] = "graph-images"
    count: int = attrs.field(validator=v.ge(1), metadata={"help": "images to draw"})

    def compute(self, graph: GraphModule, ctx: PassContext) -> Pictures:
        return draw(graph, ctx, self.count, "images of the quantized")

    def merge(self, parts: list[Pictures]) -> Pictures:
        return np.concatenate(parts)


def draw(graph: GraphModule, ctx: PassContext, count: int, title: str) -> Pictures:
    """The first `count` images of the evaluation stream."""
    batches = ctx.model.sample(
        graph,
        seed=ctx.seed,
        count=count,
        sampling=ctx.sampling,
        device=ctx.device,
        progress=ctx.progress,
        title=title,
    )
    with torch.no_grad():
        return np.concatenate([batch.numpy() for batch in batches])
