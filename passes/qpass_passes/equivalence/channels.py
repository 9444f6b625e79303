"""What every channel of what layers read goes up to, timestep by timestep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from qpass.activations import rows_within, widest_row
from qpass.analysis import Analysis
from qpass.manager import PassContext
from qpass.slots import layer
from qpass_passes.equivalence.ties import Tie
from qpass_passes.fitting import spread_rows
from qpass_passes.row_places import Places, look

BATCH = 64  # rows at a time, where the memory budget has room for them


@attrs.frozen(kw_only=True, eq=False)
class Channels:
    """Of the inputs of layers' calls, by origin, (T, C), a row for each of `times`.

    `low` and `high` are the least and greatest value; `typical` is the largest absolute value of a row of the
    calibration set, averaged over rows, so that one odd row does not decide it.
    """

    times: Tensor
    low: Mapping[str, Tensor]
    high: Mapping[str, Tensor]
    typical: Mapping[str, Tensor]

    def of(self, tie: Tie) -> tuple[Tensor, Tensor]:
        """The ranges over all that the tied layers read."""
        names = [str(node.meta["origin"]) for node in tie.calls]
        low = torch.stack([self.low[name] for name in names]).amin(0)
        return low, torch.stack([self.high[name] for name in names]).amax(0)

    def largest(self, tie: Tie) -> Tensor:
        """Absolute maxima of what the tied layers read, (T, C)."""
        low, high = self.of(tie)
        return torch.maximum(-low, high)

    def averaged(self, tie: Tie) -> Tensor:
        """Means over rows of absolute maxima, (T, C)."""
        return torch.stack([self.typical[str(node.meta["origin"])] for node in tie.calls]).amax(0)


@attrs.frozen(kw_only=True)
class ChannelRanges(Analysis[Channels]):
    """Asked of the graph as it stands, over `rows` rows of its calibration set; all of them where there are fewer."""

    name: ClassVar[str] = "channel-ranges"
    of: ClassVar[Literal["reference", "graph"]] = "graph"
    calibration: Analysis[Any]
    rows: int

    @torch.no_grad()
    def compute(self, graph: GraphModule, ctx: PassContext) -> Channels:
        """One pass over the rows; only the ranges are kept."""
        samples = spread_rows(ctx.get(self.calibration, graph), self.rows, ctx.seed)
        times, step = torch.unique(samples.t, return_inverse=True)
        sources = {
            n.args[0] for n in graph.graph.nodes if layer(graph, n) is not None and isinstance(n.args[0], Node)
        }
        places = {node: found for node, _, found in look(graph, sources, samples, ctx.device)}
        watch = _Watch(graph, len(times), places)
        batch = rows_within(ctx.memory_budget // 4, widest_row(graph, samples, ctx.device), BATCH)
        with ctx.progress.task("channel ranges", len(samples)) as task:
            for inputs, steps in zip(samples.batches(batch, ctx.device), torch.split(step, batch), strict=True):
                watch.step = steps.to(ctx.device)
                watch.run(*inputs)
                task.advance(len(inputs[0]))
        return Channels(
            times=times,
            low={name: value.cpu() for name, value in watch.low.items()},
            high={name: value.cpu() for name, value in watch.high.items()},
            typical={
                name: (value / watch.seen[name].unsqueeze(1)).float().cpu() for name, value in watch.sums.items()
            },
        )


class _Watch(Interpreter):
    """Runs the graph and widens each layer's ranges by what it reads."""

    def __init__(self, graph: GraphModule, steps: int, places: Mapping[Node, Places | None]) -> None:
        super().__init__(graph)
        self.graph_module, self.steps, self.places = graph, steps, places
        self.low: dict[str, Tensor] = {}
        self.high: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self.step = torch.zeros(0, dtype=torch.long)

    def run_node(self, n: Node) -> Any:
        module = layer(self.graph_module, n)
        if module is not None and isinstance(n.args[0], Node):
            x = self.env[n.args[0]].float()
            last = x if isinstance(module, nn.Linear) else x.movedim(1, -1)
            self._widen(str(n.meta["origin"]), last, self.places[n.args[0]])
        return super().run_node(n)

    def _widen(self, name: str, x: Tensor, places: Places | None) -> None:
        """By values whose channels are in the last axis; without places they are the same for every row."""
        rows = x.unsqueeze(0) if places is None else places.by_row(x)
        rows = rows.reshape(len(rows), -1, x.shape[-1])
        low, high = (part.expand(len(self.step), -1) for part in (rows.amin(1), rows.amax(1)))
        if name not in self.low:
            shape = (self.steps, x.shape[-1])
            self.low[name], self.high[name] = x.new_full(shape, torch.inf), x.new_full(shape, -torch.inf)
            self.sums[name] = torch.zeros(shape, dtype=torch.float64, device=x.device)
            self.seen[name] = torch.zeros(self.steps, dtype=torch.float64, device=x.device)
        index = self.step.unsqueeze(1).expand_as(low)
        self.low[name].scatter_reduce_(0, index, low, "amin")
        self.high[name].scatter_reduce_(0, index, high, "amax")
        self.sums[name].index_add_(0, self.step, torch.maximum(-low, high).double())
        self.seen[name].index_add_(0, self.step, torch.ones_like(self.step, dtype=torch.float64))
