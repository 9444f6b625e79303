"""The Inception of 2015 as a feature network: what FID, sFID, KID and Inception Score are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
from attrs import validators as v

from qpass_evaluators.networks import inception_graph, inception_weights, resize, weight_files
from qpass_evaluators.networks.feature_network import FeatureNetwork, Pictures, Run, as_tensor

RESIZES = {"pytorch": resize.pytorch, "tensorflow": resize.tensorflow}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@attrs.frozen(kw_only=True)
class Inception(FeatureNetwork):
    """Inception-v3 of 2015-12-05.

    pool: mean of the last block, 2048. spatial: the first 7 channels of `mixed_6/conv:0` at 17 x 17, 2023, as in
    ADM's sFID. logits, only of weights that have the 1008-way layer: pool times its matrix without its bias, which
    is what Inception Score was defined on (torch-fidelity's `logits_unbiased`).
    """

    name: ClassVar[str] = "inception-2015"
    batch: ClassVar[int] = 16

    resize: str = attrs.field(
        default="pytorch", validator=v.in_(RESIZES),
        metadata={"help": "`pytorch` as pytorch-fid, or `tensorflow` as ADM and torch-fidelity"},
    )  # fmt: skip
    precision: str = attrs.field(
        default="float32", validator=v.in_(PRECISIONS), metadata={"help": "`float32` or `bfloat16`"}
    )
    weights: str = attrs.field(
        default="",
        metadata={"help": "file of pytorch-fid's or torch-fidelity's weights; empty is the shipped one"},
    )

    @property
    def path(self) -> Path:
        return Path(self.weights) if self.weights else inception_weights.SHIPPED

    def fingerprint(self) -> str:
        return weight_files.fingerprint(self.path)

    def protocol(self) -> Mapping[str, Any]:
        return {
            "features": self.name,
            "weights": self.fingerprint(),
            "resize": self.resize,
            "precision": self.precision,
        }

    def dimensions(self) -> Mapping[str, int]:
        full = bool(self.weights) and inception_weights.has_classes(self.path, self.fingerprint())
        return {"pool": 2048, "spatial": 2023, **({"logits": inception_weights.CLASSES} if full else {})}

    def check(self) -> None:
        if self.weights:
            inception_weights.read(self.path)

    def prepare(self, device: torch.device) -> Run:
        dtype, shrink = PRECISIONS[self.precision], RESIZES[self.resize]
        weights = inception_weights.load(self.path, self.fingerprint(), dtype, device, self.batch)
        # Two images at a time on one core: the stem's maps are the largest, 5.5 MB an image in fp32. In larger
        # batches they leave the cache, and from 32 MB on every allocation is new pages, which cost more than the
        # arithmetic.
        few = max(2, torch.get_num_threads()) if device.type == "cpu" else self.batch

        def run(images: Pictures) -> Mapping[str, torch.Tensor]:
            pixels = as_tensor(images, device)
            parts = []
            for some in torch.split(pixels, few):
                x = shrink(some).to(dtype).contiguous(memory_format=torch.channels_last)
                parts.append(inception_graph.stem(weights.convolutions, x))
            pool, spatial = inception_graph.body(weights.convolutions, torch.cat(parts))
            outputs = {"pool": pool, "spatial": spatial}
            if weights.classes is not None:
                outputs["logits"] = F.linear(pool, weights.classes)
            return outputs

        return run
