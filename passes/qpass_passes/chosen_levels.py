"""Writes down the levels that were chosen for a slot, each time group its own."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule

from qpass.kernels import reference
from qpass.quantizer import QParams
from qpass.slots import Slot, spec_of, write_params
from qpass.spec import QuantSpec


def write_levels(
    graph: GraphModule, slot: Slot, chosen: Sequence[QParams], edges: Tensor | None, device: torch.device
) -> None:
    """From now on the slot's spec is `levels`, with those of each group."""
    spec = attrs.evolve(slot.spec, format="levels")
    node = spec_of(slot.node)
    assert node is not None
    inputs = (spec, *node.inputs[1:])
    slot.node.meta["qpass"] = attrs.evolve(node, inputs=inputs)
    size = 2**spec.widest
    rows = [levels(params, spec, size) for params in chosen]
    scale, table, thresholds = (torch.stack(part).to(device) for part in zip(*rows, strict=True))
    tensors = {"scale": scale.reshape(-1, 1), "table": table, "thresholds": thresholds}
    if edges is not None:
        tensors["edges"] = edges.to(device)
    write_params(graph, attrs.evolve(slot, spec=spec), QParams(kind="codebook", tensors=tensors))


def write_even(
    graph: GraphModule, slot: Slot, chosen: Sequence[QParams], edges: Tensor | None, device: torch.device
) -> None:
    """The chosen scales, at the slot as it is: nobody fits others."""
    tensors = {part: torch.cat([one.tensors[part] for one in chosen]).to(device) for part in ("scale", "zero")}
    if edges is not None:
        tensors["edges"] = edges.to(device)
    write_params(graph, slot, QParams(kind="affine", tensors=tensors))


def levels(params: QParams, spec: QuantSpec, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """One parameter set as a scale, `size` levels within [-1, 1] and the thresholds between them."""
    scale = params.tensors["scale"].reshape(())
    if params.kind == "affine":
        low, high = reference.levels(spec.widest, spec.symmetric)
        codes = torch.arange(int(low), int(high) + 1).float() - params.tensors["zero"].reshape(())
        largest = codes.abs().max()
        table = codes / largest
        scale, thresholds = scale * largest, (table[1:] + table[:-1]) / 2
    else:
        table, thresholds = (params.tensors[part].reshape(-1) for part in ("table", "thresholds"))
    short = size - len(table)  # a large base has fewer levels than codes: the rest are never chosen
    table = torch.cat([table, table[-1:].expand(short)])
    return scale, table, torch.cat([thresholds, thresholds.new_full((short,), torch.inf)])
