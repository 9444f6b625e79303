"""Fit parameters that are missing: weights on themselves, inputs on calibration rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from qpass.quantizer import Batches, QParams, Quantizer
from qpass.slots import Slot, read_params, slots, weight_of, write_params
from qpass.timegroups import edges_for
from qpass_passes.quantizers.mse import Mse


@attrs.frozen(kw_only=True, slots=False)  # two bases with slots cannot be joined
class FittingOptions:
    """Of a pass that fits what nothing before it has fitted."""

    weight: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how scales of weights are fitted where nothing has fitted them"}
    )
    input: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how scales of inputs are fitted where nothing has fitted them"}
    )
    fit_rows: int = attrs.field(
        default=256, validator=v.ge(1), metadata={"help": "calibration rows the inputs are fitted on"}
    )

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


def refuse_several(slot: Slot, places: int, rows: int) -> None:
    """A `PreconditionError` where a slot has time groups and its tensor more places in its first axis than rows."""
    if places > rows:
        raise PreconditionError(
            f"{slot.home!r} reads a tensor with {places // rows} places for each image in its first axis, and time "
            f"groups count images; give it a spec without 'time:{slot.spec.time_groups}'"
        )


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
    """Fit every static input that has no parameters yet, on that many calibration rows; returns how many."""
    missing = [s for s in slots(graph) if s.index >= 0 and not s.spec.dynamic and read_params(graph, s) is None]
    if not missing:
        return 0
    calibration = ctx.get(ctx.calibration, graph)
    # on every timestep that was seen, not only those among the chosen rows; and asked before anything is recorded
    edges_of = {slot.spec: edges_for(slot.spec, calibration.t) for slot in missing}
    samples = choose_rows(calibration, rows, ctx.seed)
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
                edges = edges_of[slot.spec]
                if edges is not None:
                    refuse_several(slot, sum(map(len, values[source])), len(samples))
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


def grouped(batches: list[Tensor], t: Tensor, edges: Tensor | None, slot: Slot) -> Iterator[tuple[Tensor, Tensor]]:
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
