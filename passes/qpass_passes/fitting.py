"""Fit parameters that are missing: weights on themselves, inputs on calibration rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples, record
from qpass.errors import PreconditionError, QpassError
from qpass.kernels import reference
from qpass.manager import PassContext
from qpass.quantizer import Batches, QParams, Quantizer, ranges
from qpass.slots import Slot, read_params, slots, weight_of, write_params
from qpass.timegroups import alike, edges_for
from qpass_passes.quantizers.mse import Mse
from qpass_passes.row_places import Places, look

HELP_ROWS = "calibration rows the inputs are fitted on; more where there are many time groups: 8 for each"
PER_GROUP = 8  # calibration rows that the scale of a time group is fitted on, at least, where there are as many


@attrs.frozen(kw_only=True, slots=False)  # two bases with slots cannot be joined
class FittingOptions:
    """Of a pass that fits what nothing before it has fitted."""

    weight: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how scales of weights are fitted where nothing has fitted them"}
    )
    input: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how scales of inputs are fitted where nothing has fitted them"}
    )
    fit_rows: int = attrs.field(default=256, validator=v.ge(1), metadata={"help": HELP_ROWS})

    def fit_missing(self, graph: GraphModule, ctx: PassContext, name: str, *, inputs: bool) -> None:
        """Fit weights, and inputs where they are rounded; a `PreconditionError` of that pass where nothing is."""
        if not any(True for _ in slots(graph)):
            raise PreconditionError(f"{name}: no node has a spec, so nothing is rounded; see 'assign'")
        fit_weights(graph, self.weight, ctx)
        if inputs:
            fit_inputs(graph, self.input, self.fit_rows, ctx)


def refuse_fitted(graph: GraphModule, who: str, about: Iterable[Slot]) -> None:
    """A `PreconditionError` of that pass where any of the slots it is about to change has been fitted."""
    for slot in about:
        if read_params(graph, slot) is not None:
            raise PreconditionError(
                f"{who}: {slot.home!r} has been fitted already, and the fit would not hold; put {who!r} right after "
                "'assign', before what fits or learns"
            )


def refuse_several(graph: GraphModule, about: Iterable[Slot], samples: Samples, device: torch.device) -> None:
    """A `PreconditionError` where a slot has time groups and the first axis of its tensor does not count rows."""
    for slot, places in _places(graph, [slot for slot in about if slot.spec.time_groups > 1], samples, device):
        if places is not None and not places.first:
            per = places.outer * places.inner
            where = "its first axis" if places.axis == 0 else f"axis {places.axis}"
            raise PreconditionError(
                f"{slot.home!r} reads a tensor with {per} place{'s' * (per > 1)} for each image in {where}, and time "
                f"groups count images along the first; give it a spec without 'time:{slot.spec.time_groups}'"
            )


def several(graph: GraphModule, about: Iterable[Slot], samples: Samples, device: torch.device) -> set[str]:
    """The homes of the slots that cannot have time groups: the first axis of their tensor does not count rows."""
    found = _places(graph, list(about), samples, device)
    return {slot.home for slot, places in found if places is not None and not places.first}


def _places(
    graph: GraphModule, about: Sequence[Slot], samples: Samples, device: torch.device
) -> list[tuple[Slot, Places | None]]:
    if not about:
        return []
    seen = {node: places for node, _, places in look(graph, (slot.source for slot in about), samples, device)}
    return [(slot, seen[slot.source]) for slot in about]


def fit_weights(graph: GraphModule, quantizer: Quantizer, ctx: PassContext) -> int:
    """Fit every weight that has no parameters yet, on itself; returns how many."""
    missing = [s for s in slots(graph) if s.index < 0 and read_params(graph, s) is None]
    with ctx.progress.task("fit weights", len(missing)) as task:
        for slot in missing:
            weight = weight_of(graph, slot)
            values = reference.arrange(weight, slot.layout, slot.spec.granularity, slot.spec.group_size)
            group = torch.zeros(1, dtype=torch.long, device=weight.device)
            write_params(graph, slot, fit(quantizer, slot, partial(list, [(values, group)])))
            task.advance()
    return len(missing)


def fit_inputs(graph: GraphModule, quantizer: Quantizer, rows: int, ctx: PassContext) -> int:
    """Fit every static input that has no parameters yet, on that many calibration rows, spread over the timesteps.

    There are more rows where there are many time groups: see `spread_rows`. Returns how many inputs were fitted.
    """
    missing = [s for s in slots(graph) if s.index >= 0 and not s.spec.dynamic and read_params(graph, s) is None]
    if not missing:
        return 0
    calibration = ctx.get(ctx.calibration, graph)
    # on every timestep that was seen, not only those among the chosen rows; and asked before anything is recorded
    edges_of = {slot.spec: edges_for(slot.spec, calibration.t) for slot in missing}
    refuse_several(graph, missing, calibration, ctx.device)
    samples = spread_rows(calibration, rows, ctx.seed, edges_of.values())
    # equal specs on one tensor are fitted once: q, k and v share their input
    same: dict[tuple[Node, str, str], list[Slot]] = {}
    for slot in missing:
        same.setdefault((slot.source, str(slot.spec), slot.layout), []).append(slot)
    sources = list(dict.fromkeys(source for source, _, _ in same))
    with ctx.progress.task("fit inputs", len(same)) as task:
        for values in record(
            graph, sources, samples, device=ctx.device, budget=ctx.memory_budget // 4,
            progress=ctx.progress, title="record inputs",
        ):  # fmt: skip
            for (source, _, _), alike in same.items():
                if source not in values:
                    continue
                slot = alike[0]
                edges = settled(edges_of[slot.spec], slot, values[source], samples.t)
                pairs = partial(grouped, values[source], samples.t, edges, slot)
                params = fit(quantizer, slot, pairs)
                del pairs
                if edges is not None:
                    params = attrs.evolve(params, tensors={**params.tensors, "edges": edges})
                for each in alike:
                    write_params(graph, each, _to(params, ctx.device))
                task.advance()
    return len(missing)


def choose_rows(samples: Samples, count: int, seed: int) -> Samples:
    """That many rows at random, in their order; all where there are fewer."""
    if count >= len(samples):
        return samples
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return samples.take(order[:count].sort().values)


def spread_rows(samples: Samples, count: int, seed: int, edges: Iterable[Tensor | None] = ()) -> Samples:
    """That many rows in their order, spread over the timesteps: one at random from each of as many equal stretches.

    Each group of timesteps between these edges has `PER_GROUP` of them, or all it has where these are fewer; there are
    more rows than `count` where that takes more.
    """
    groups = [reference.time_group(samples.t, one) for one in edges if one is not None]
    count = max([count, *(PER_GROUP * len(torch.unique(group)) for group in groups)])
    if count >= len(samples):
        return samples
    draws = torch.Generator().manual_seed(seed)
    ends = torch.arange(count + 1) * len(samples) // count
    inside = torch.rand(count, generator=draws, dtype=torch.float64) * ends.diff()
    taken = torch.zeros(len(samples), dtype=torch.bool)
    taken[samples.t.argsort(stable=True)[ends[:-1] + inside.long()]] = True
    for group in groups:
        for one in torch.unique(group):
            lacking = PER_GROUP - int(taken[group == one].sum())
            free = ((group == one) & ~taken).nonzero()[:, 0]
            taken[free[torch.randperm(len(free), generator=draws)[: max(0, lacking)]]] = True
    return samples.take(taken.nonzero()[:, 0])


def settled(edges: Tensor | None, slot: Slot, batches: Iterable[Tensor], t: Tensor) -> Tensor | None:
    """These edges; where time is split by range, those of them that hold timesteps of like ranges together."""
    if edges is None or slot.spec.time_split != "range":
        return edges
    found = ranges(partial(grouped, batches, t, edges, slot), len(edges) + 1)
    low, high = found.low, found.high
    if slot.spec.symmetric:
        low, high = torch.zeros_like(low), torch.maximum(low.abs(), high.abs())
    starts = torch.tensor(alike(low, high, slot.spec.time_groups), dtype=torch.long)
    return edges[starts - 1]


def grouped(
    batches: Iterable[Tensor], t: Tensor, edges: Tensor | None, slot: Slot
) -> Iterator[tuple[Tensor, Tensor]]:
    """Recorded batches as (values by parameter set, time group) pairs."""
    start = 0
    for batch in batches:
        times = t[start : start + len(batch)]
        start += len(batch)
        zero = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
        group = zero if edges is None else reference.time_group(times, edges).to(batch.device)
        yield reference.arrange(batch, slot.layout, slot.spec.granularity, slot.spec.group_size), group


def fit(quantizer: Quantizer, slot: Slot, batches: Batches) -> QParams:
    """The quantizer's parameters for a slot, of the shape that everyone counts on."""
    try:
        params = quantizer.fit(batches, slot.spec)
    except ValueError as error:
        raise QpassError(f"{quantizer.name} cannot fit {slot.home!r}: {error}") from error
    rows = tuple(params.tensors["scale"].shape) if "scale" in params.tensors else None
    expected = (slot.spec.time_groups, next(iter(batches()))[0].shape[1])
    if rows != expected:
        raise QpassError(
            f"quantizer {quantizer.name!r} must return scales of shape {expected} for {slot.home!r}, not {rows}"
        )
    return params


def _to(params: QParams, device: torch.device) -> QParams:
    return attrs.evolve(params, tensors={k: tensor.to(device) for k, tensor in params.tensors.items()})
