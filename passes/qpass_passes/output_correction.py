"""Undo what rounding does to the model's output on average: its shrinking and its shift, at each timestep."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.activations import rows_within, widest_row
from qpass.errors import PreconditionError
from qpass.figure import curves
from qpass.graph.ops import affine_by_group
from qpass.graph.tensors import put
from qpass.kernels import reference
from qpass.manager import Pass, PassContext, PassResult
from qpass.spec import QuantSpec
from qpass.timegroups import edges_for
from qpass_passes.fitting import choose_rows

BATCH = 32  # rows that both models are called with at once, where the memory budget has room for them


@attrs.frozen(kw_only=True)
class OutputCorrection(Pass):
    """Scale and shift the output at each timestep so that its error no longer hangs on what it should be.

    PTQD's correction (2305.10657): the quantized model's noise is e^ = (1 + k) e + mu + d, where k is found by linear
    regression of the error on the full-precision noise e and mu is the mean error by channel; what is sampled from is
    (e^ - mu) / (1 + k). What is left, d, has nothing to do with e. Scales of least error clip a little, so k is
    mostly negative; what is missing, or shifted, at one step is so at the next, and a sampler adds that up.

    Here each sampled timestep has its own k and mu, from the calibration rows of that timestep, which full precision
    meets while it samples (our choice); between two of them the nearer one counts.
    `least` bounds 1 + k from below: at the last steps of a badly rounded model k comes close to -1, and dividing by
    almost nothing would blow up what is left. It comes after `simulate`. A variance that the model predicts beside
    the noise stays as it is. PTQD takes the variance of d out of the noise that a stochastic sampler adds; that is
    not done here, and with DDIM at eta 0 there is none to take it from.
    """

    name: ClassVar[str] = "output-correction"
    needs: ClassVar[frozenset[str]] = frozenset({"realised"})
    provides: ClassVar[frozenset[str]] = frozenset({"output-corrected"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"output-corrected"})

    gain: bool = attrs.field(
        default=True,
        validator=v.instance_of(bool),
        metadata={"help": "undo the shrinking too, not the shift alone"},
    )
    least: float = attrs.field(
        default=0.5, validator=[v.gt(0), v.le(1)], metadata={"help": "1 + k is taken to be no less than this"}
    )
    groups: int = attrs.field(
        default=0, validator=v.ge(0), metadata={"help": "groups of timesteps; 0 is each sampled one its own"}
    )
    rows: int = attrs.field(
        default=2048, validator=v.ge(1), metadata={"help": "calibration rows to average over; all, where fewer"}
    )

    @torch.no_grad()
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Regress group by group, then put one node before the output."""
        samples = choose_rows(ctx.get(ctx.calibration, graph), self.rows, ctx.seed)
        times = sorted(set(samples.t.float().tolist()))
        if self.groups > len(times):
            raise PreconditionError(
                f"output-correction: groups is {self.groups}, but calibration saw only {len(times)} timesteps; "
                "ask for fewer groups or sample more steps"
            )
        edges = edges_for(QuantSpec(time_groups=self.groups or len(times)), samples.t)
        if edges is None:
            edges = torch.empty(0)
        shape = () if ctx.model.cannot_sample() else ctx.model.sampler().shape
        sums = Moments(len(edges) + 1, shape[0] if len(shape) > 2 else None)
        batch = rows_within(ctx.memory_budget // 4, widest_row(graph, samples, ctx.device), BATCH)
        with ctx.progress.task("compare outputs", len(samples)) as task:
            for inputs in samples.batches(batch, ctx.device):
                group = reference.time_group(inputs[1], edges.to(ctx.device)).cpu()
                sums.add(ctx.reference(*inputs), graph(*inputs), group)
                task.advance(len(group))
        kept, gain, shift = sums.regress(self.least if self.gain else None)
        insert(graph, edges.to(ctx.device), gain.to(ctx.device), shift.to(ctx.device))
        of_time = reference.time_group(torch.tensor(times), edges).tolist()
        left = {t: float(kept[g]) for t, g in zip(times, of_time, strict=True)}
        return PassResult(
            graph=graph,
            changed=True,
            notes={
                "1 + k by timestep": curves({"found": left}, x="timestep", y="1 + k"),
                "largest shift": float(f"{float(shift.abs().max()):.4g}"),
            },
        )


class Moments:
    """Moments of both models' outputs by group and channel, in float64."""

    def __init__(self, groups: int, channels: int | None) -> None:
        self.groups, self.channels = groups, channels
        self.moments: Tensor | None = None  # (5, G, C): how many, y, q, q y, y y
        self.shape: tuple[int, ...] = ()

    def add(self, theirs: Tensor, ours: Tensor, group: Tensor) -> None:
        """Rows of both, and the group of each."""
        axis = -1 if theirs.dim() == 3 else 1  # a sequence has its channels last
        y, q = (x.movedim(axis, 1).flatten(2).double().cpu() for x in (theirs, ours))
        found = torch.stack([x.sum(2) for x in (torch.ones_like(y), y, q, q * y, y * y)])
        if self.moments is None:
            self.moments = torch.zeros(5, self.groups, y.shape[1], dtype=torch.float64)
            self.shape = tuple(-1 if place == axis % theirs.dim() else 1 for place in range(1, theirs.dim()))
        self.moments.index_add_(1, group, found)

    def regress(self, least: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """1 + k of each group, and the gain and the shift that undo it; `least` of None leaves the gain at 1."""
        assert self.moments is not None
        count, y, q, both, square = self.moments
        few = slice(0, self.channels)  # the noise's own, where a variance comes with it
        mean_y, mean_q = y / count, q / count
        varying = (square - y * mean_y)[:, few].sum(1)
        along = (both - q * mean_y)[:, few].sum(1) / varying.clamp(min=1e-30)
        kept = torch.where(varying > 1e-30, along, 1.0)  # an output that is constant has nothing to shrink
        factor = torch.ones_like(kept) if least is None else 1 / kept.clamp(min=least)
        gain, shift = torch.ones_like(mean_y), torch.zeros_like(mean_y)
        gain[:, few] = factor[:, None]
        shift[:, few] = (mean_y - mean_q * gain)[:, few]
        spread = (self.groups, *self.shape)
        return kept, gain.float().reshape(spread), shift.float().reshape(spread)


def insert(graph: GraphModule, edges: Tensor, gain: Tensor, shift: Tensor) -> None:
    """Put the correction before the output; its tensors go beside the model's."""
    for name, tensor in {"edges": edges, "gain": gain, "shift": shift}.items():
        put(graph, f"output_correction.{name}", tensor)
    nodes = graph.graph
    (last,) = nodes.find_nodes(op="output")
    output, placeholders = last.args[0], nodes.find_nodes(op="placeholder")
    single = output if not isinstance(output, tuple | list) else output[0]
    with nodes.inserting_before(last):
        at, by, to = (nodes.get_attr(f"output_correction.{name}") for name in ("edges", "gain", "shift"))
        group = nodes.call_function(reference.time_group, (placeholders[1], at))
        corrected = nodes.call_function(affine_by_group, (single, by, to, group))
    group.meta = {"origin": "output_correction/time_group[0]", "stack": ()}
    corrected.meta = {"origin": "output_correction", "stack": ()}
    last.replace_input_with(single, corrected)
    graph.recompile()
