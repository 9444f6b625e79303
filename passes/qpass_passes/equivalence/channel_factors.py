"""The pass that divides the channels of inputs by factors: what it looks at, rewrites and reports.

How a factor is chosen is left to each such pass.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.manager import Pass, PassContext, PassResult
from qpass.quantizer import QParams
from qpass.slots import slots, write_params
from qpass_passes.equivalence.channels import ChannelRanges, Channels
from qpass_passes.equivalence.rescale import rescale
from qpass_passes.equivalence.ties import Tie, check, ties
from qpass_passes.fitting import refuse_fitted


def globs(meaning: str) -> Any:
    """The option that picks layers by name."""
    return attrs.field(
        default=("*",),
        validator=v.deep_iterable(v.instance_of(str), v.instance_of(tuple)),
        metadata={"help": meaning},
    )


def rows_seen() -> Any:
    """The option that says how many rows the ranges are taken over."""
    return attrs.field(
        default=512, validator=v.ge(1), metadata={"help": "calibration rows to look at; all, where fewer"}
    )


@attrs.frozen(kw_only=True, eq=False)
class Move:
    """What tied layers are to read: `x / factor + offset`, (C,) both, rounded with `params` where they are known."""

    factor: Tensor
    offset: Tensor | None = None
    params: QParams | None = None

    @property
    def spread(self) -> float:
        """How far the factors lie apart."""
        return float(self.factor.max() / self.factor.min())


@attrs.frozen(kw_only=True)
class ChannelFactors(Pass):
    """Looks at the inputs of tied layers once, chooses every factor, then rewrites.

    Options stand where a recipe's reader expects them, so each pass restates these two in its own order.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"corrected", "realised"})
    symbol: ClassVar[str] = "r"  # the factor's name in the paper, and so in the report

    layers: tuple[str, ...] = globs("globs of the layers to look at")
    rows: int = rows_seen()

    @abstractmethod
    def choose(
        self, graph: GraphModule, ctx: PassContext, found: Sequence[Tie], channels: Channels
    ) -> tuple[Sequence[Move | None], Mapping[str, Any]]:
        """A move for each tie, None to leave it as it is; and what else the report should say."""

    def wants(self, graph: GraphModule, tie: Tie) -> bool:
        """Whether the tied layers are for this pass."""
        return True

    def requires(self, graph: GraphModule, ctx: PassContext) -> None:
        """Every glob matches a layer."""
        check(graph, self.name, self.layers)

    @torch.no_grad()
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Every factor is chosen before the first one is put to use."""
        found = [tie for tie in ties(graph, self.layers) if self.wants(graph, tie)]
        calls = {node for tie in found for node in tie.calls}
        refuse_fitted(graph, self.name, (slot for slot in slots(graph) if slot.node in calls))
        channels = ctx.get(ChannelRanges(calibration=ctx.calibration, rows=self.rows), graph)
        moves, more = self.choose(graph, ctx, found, channels)
        went: Counter[str] = Counter()
        largest = ("", 1.0)
        for tie, move in zip(found, moves, strict=True):
            if move is None:
                continue
            largest = max(largest, (tie.name, move.spread), key=lambda one: one[1])
            went[rescale(graph, tie, move.factor, move.offset)] += 1
            if move.params is not None:
                _write(graph, tie, move.params, ctx.device)
        graph.recompile()
        notes = {
            "layers": sum(len(tie.layers) for tie in found),
            "into": dict(went),
            f"largest spread of {self.symbol}": {largest[0]: float(f"{largest[1]:.4g}")},
            **more,
        }
        return PassResult(graph=graph, changed=bool(went), notes=notes)


def _write(graph: GraphModule, tie: Tie, params: QParams, device: torch.device) -> None:
    inside = set(tie.calls)
    kept = attrs.evolve(params, tensors={name: tensor.to(device) for name, tensor in params.tensors.items()})
    for slot in slots(graph):
        if slot.node in inside and slot.index == 0:
            write_params(graph, slot, kept)
