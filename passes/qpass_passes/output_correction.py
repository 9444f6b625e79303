"""Undo what rounding does to the model's output on average: its shrinking and its shift, at each timestep."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.activations import Samples, rows_within, widest_row
from qpass.errors import PreconditionError
from qpass.figure import curves
from qpass.graph.ops import affine_by_group
from qpass.graph.tensors import put
from qpass.kernels import reference
from qpass.manager import Pass, PassContext, PassResult
from qpass.sampling import make_scheduler, trajectory
from qpass.spec import QuantSpec
from qpass.timegroups import edges_for
from qpass_passes.calibration.from_sampling import FromSampling
from qpass_passes.fitting import choose_rows
from qpass_passes.moments import Moments

BATCH = 32  # rows that both models are called with at once, where the memory budget has room for them


@attrs.frozen(kw_only=True)
class OutputCorrection(Pass):
    """Scale and shift the output at each timestep so that its error no longer hangs on what it should be.

    PTQD's correction (2305.10657): the quantized model's noise is e^ = (1 + k) e + mu + d, where k is found by linear
    regression of the error on the full-precision noise e and mu is the mean error by channel; what is sampled from is
    (e^ - mu) / (1 + k). What is left, d, has nothing to do with e. Scales of least error clip a little, so k is
    mostly negative; what is missing, or shifted, at one step is so at the next, and a sampler adds that up.

    Here each sampled timestep has its own k and mu, from the calibration rows of that timestep, which full precision
    meets while it samples (our choice); between two of them the nearer one counts. With `way = "own"` they are from
    what the quantized model meets while it samples the same images, every step corrected before the next: there it
    takes noise that its own errors have left for part of the image, and gives back less of it, step after step.
    `least` bounds 1 + k from below: at the last steps of a badly rounded model k comes close to -1, and dividing by
    almost nothing would blow up what is left. On the model's own way k grows by what it has done before, so there a
    bound close to 1 is better (the recipe `best-w4a4` has 0.96). It comes after `simulate`. A variance that the model
    predicts beside the noise stays as it is. PTQD takes the variance of d out of the noise that a stochastic sampler
    adds; that is not done here, and with DDIM at eta 0 there is none to take it from.
    """

    name: ClassVar[str] = "output-correction"
    needs: ClassVar[frozenset[str]] = frozenset({"realised"})
    provides: ClassVar[frozenset[str]] = frozenset({"output-corrected"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"output-corrected"})

    way: Literal["full", "own"] = attrs.field(
        default="full",
        validator=v.in_(("full", "own")),
        metadata={
            "help": 'on what full precision meets while sampling, or, "own", on what the model itself meets'
        },
    )
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

    def requires(self, graph: GraphModule, ctx: PassContext) -> None:
        """On its own way the model samples the images of the calibration set, so that has to be of samplings."""
        if self.way == "own" and not isinstance(ctx.calibration, FromSampling):
            raise PreconditionError(
                f"output-correction: calibration {ctx.calibration.name!r} does not sample, so there is no way of the "
                'quantized model\'s own to correct it on; set way = "full", or use one that does, such as uniform-steps'
            )

    @torch.no_grad()
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Regress group by group, then put one node before the output."""
        samples = ctx.get(ctx.calibration, graph)
        if self.way == "full":
            samples = choose_rows(samples, self.rows, ctx.seed)
        times = samples.t if self.way == "full" else sampled_times(ctx)
        edges = self._edges(times).to(ctx.device)
        shape = () if ctx.model.cannot_sample() else ctx.model.sampler().shape
        sums = Moments(len(edges) + 1, shape[0] if len(shape) > 2 else None)
        compare = Comparison(
            graph=graph, ctx=ctx, edges=edges, sums=sums,
            batch=rows_within(ctx.memory_budget // 4, widest_row(graph, samples, ctx.device), BATCH),
        )  # fmt: skip
        least = self.least if self.gain else None
        if self.way == "full":
            with ctx.progress.task("compare outputs", len(samples)) as task:
                for inputs in samples.batches(compare.batch, ctx.device):
                    compare.add(inputs)
                    task.advance(len(inputs[0]))
        else:
            follow(compare, self.rows, least)
        kept, gain, shift = sums.regress(least)
        insert(graph, edges, gain.to(ctx.device), shift.to(ctx.device))
        seen = sorted(set(times.float().tolist()))
        of_time = reference.time_group(torch.tensor(seen), edges.cpu()).tolist()
        left = {t: float(kept[g]) for t, g in zip(seen, of_time, strict=True)}
        return PassResult(
            graph=graph,
            changed=True,
            notes={
                "1 + k by timestep": curves({"found": left}, x="timestep", y="1 + k"),
                "largest shift": float(f"{float(shift.abs().max()):.4g}"),
            },
        )

    def _edges(self, times: Tensor) -> Tensor:
        """Between the groups of these timesteps."""
        count = len(set(times.float().tolist()))
        if self.groups > count:
            raise PreconditionError(
                f"output-correction: groups is {self.groups}, but calibration saw only {count} timesteps; "
                "ask for fewer groups or sample more steps"
            )
        edges = edges_for(QuantSpec(time_groups=self.groups or count), times)
        return torch.empty(0) if edges is None else edges


@attrs.frozen(kw_only=True, eq=False)
class Comparison:
    """Both models called on the same inputs, their outputs added to the moments."""

    graph: GraphModule
    ctx: PassContext
    edges: Tensor
    sums: Moments
    batch: int

    def add(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The quantized model's output."""
        ours: Tensor = self.graph(*inputs)
        self.sums.add(self.ctx.reference(*inputs), ours, reference.time_group(inputs[1], self.edges).cpu())
        return ours


def follow(compare: Comparison, rows: int, least: float | None) -> None:
    """Sample with the quantized model, each step's output corrected before it is gone on from.

    All images go side by side, since a step's correction is known once all of them are there.
    """
    ctx, fixed = compare.ctx, compare.ctx.model.unbatched()
    assert isinstance(ctx.calibration, FromSampling)
    chosen = ctx.calibration.chosen(ctx.reference, ctx)
    images = chosen.any(0).nonzero().flatten()[: max(1, rows // len(chosen))]
    with ctx.progress.task("correct on the way", len(chosen)) as task:

        def denoise(*inputs: Tensor) -> Tensor:
            parts = Samples(inputs=inputs, unbatched=fixed).batches(compare.batch, ctx.device)
            ours = torch.cat([compare.add(part) for part in parts])
            _, gain, shift = (found.to(ctx.device) for found in compare.sums.regress(least))
            return affine_by_group(ours, gain, shift, reference.time_group(inputs[1], compare.edges))

        for _ in trajectory(
            denoise, ctx.model.sampler(), ctx.sampling, seed=ctx.seed, stream="calibration",
            indices=images.tolist(), device=ctx.device,
        ):  # fmt: skip
            task.advance()


def sampled_times(ctx: PassContext) -> Tensor:
    """The timesteps as the denoiser is given them."""
    sampler = ctx.model.sampler()
    times: Tensor = make_scheduler(ctx.sampling, sampler.scheduler_config).timesteps
    return times * sampler.time_scale if sampler.time_scale != 1.0 else times


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
