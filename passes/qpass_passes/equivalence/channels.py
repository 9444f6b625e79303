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
from qpass_passes.fitting import choose_rows

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
        samples = choose_rows(ctx.get(self.calibration, graph), self.rows, ctx.seed)
        times, step = torch.unique(samples.t, return_inverse=True)
        watch = _Watch(graph, len(times))
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

    def __init__(self, graph: GraphModule, steps: int) -> None:
        super().__init__(graph)
        self.graph_module, self.steps = graph, steps
        self.low: dict[str, Tensor] = {}
        self.high: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self.step = torch.zeros(0, dtype=torch.long)

    def run_node(self, n: Node) -> Any:
        module = layer(self.graph_module, n)
        if module is not None and isinstance(n.args[0], Node):
            self._widen(str(n.meta["origin"]), self.env[n.args[0]], -1 if isinstance(module, nn.Linear) else 1)
        return super().run_node(n)

    def _widen(self, name: str, x: Tensor, axis: int) -> None:
        step = self.step
        if len(x) != len(step):  # no rows of its own: the same for all, or several to a row
            step = (
                step.repeat_interleave(len(x) // len(step)) if len(x) % len(step) == 0 else step[:1].expand(len(x))
            )
        values = x.float().movedim(axis, 1).flatten(2) if x.dim() > 2 else x.float().unsqueeze(2)
        if name not in self.low:
            self.low[name] = values.new_full((self.steps, values.shape[1]), torch.inf)
            self.high[name] = values.new_full((self.steps, values.shape[1]), -torch.inf)
            self.sums[name] = torch.zeros(self.steps, values.shape[1], dtype=torch.float64, device=values.device)
            self.seen[name] = torch.zeros(self.steps, dtype=torch.float64, device=values.device)
        index = step.unsqueeze(1).expand(-1, values.shape[1])
        self.low[name].scatter_reduce_(0, index, values.amin(2), "amin")
        self.high[name].scatter_reduce_(0, index, values.amax(2), "amax")
        self.sums[name].index_add_(0, step, values.abs().amax(2).double())
        self.seen[name].index_add_(0, step, torch.ones(len(step), dtype=torch.float64, device=values.device))
