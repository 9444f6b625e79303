"""Drawn images in memory, for evaluators that compare a few of them one by one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs
import numpy as np
import torch
from attrs import validators as v
from torch.fx import GraphModule

from qpass.analysis import Analysis, Tensors
from qpass.images import DrawnImages, Images, OriginalImages
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
        return joined(ctx.get(OriginalImages(count=self.count), graph))

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
        return joined(ctx.get(DrawnImages(count=self.count), graph))

    def merge(self, parts: list[Pictures]) -> Pictures:
        return np.concatenate(parts)


def joined(images: Images) -> Pictures:
    """All of them in one array: for few images."""
    return np.concatenate(list(images.batches(len(images))))
