"""Arithmetic of one denoise call: multiply-accumulates, and bit operations at the precision each runs at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs

from qpass.evaluator import Evaluator, Metric, Observation, Series, Subject
from qpass.manager import PassContext
from qpass.products import count

TOP = 20  # nodes shown in the report


@attrs.frozen(kw_only=True)
class Cost(Evaluator):
    """MACs of one denoise call at batch 1, and BOPs = MACs x bits of one factor x bits of the other.

    Counted: convolutions, linears, and products of matrices such as the two of every attention; nothing else. Floating
    point counts as 32 bits, or 16 where the tensor is bf16 or fp16; bit widths by output channel count with their
    mean. Convolution: numel(output) x C_in / groups x k_h x k_w. Linear, matmul: numel(output) x the length of each
    sum. An einsum of three tensors or more is named as not counted.
    """

    name: ClassVar[str] = "cost"

    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        """Count while the graph runs once at batch 1, with a text as long as the model's pipeline makes it."""
        inputs = tuple(x.to(ctx.device) for x in ctx.model.workload(1))
        # a kernel that is not known here does the work of the teacher's node that it stands for
        known = count(ctx.reference, inputs) if subject.role == "quantized" else {}
        products = count(subject.graph, inputs, known)
        protocol: dict[str, Any] = {"batch": 1, "shapes": [list(x.shape) for x in inputs], "per": "denoise call"}
        if uncounted := [name for name, parts in products.items() if not parts]:
            protocol["not counted"] = uncounted
        bops = {name: sum(p.bops for p in parts) for name, parts in products.items()}
        macs = sum(p.macs for parts in products.values() for p in parts)
        top = sorted(bops, key=bops.__getitem__, reverse=True)[:TOP]
        series = Series(
            title="bops by node", x=tuple(top), y=tuple(bops[n] for n in top), x_label="node", y_label="BOPs"
        )
        return Observation(
            numbers={"macs": macs, "bops": sum(bops.values())},
            series={series.title: series},
            protocol=protocol,
        )

    def score(self, candidate: Observation, reference: Observation | None) -> Sequence[Metric]:
        def metric(name: str, seen: Observation, **fields: Any) -> Metric:
            return Metric(name=name, value=seen.numbers[name], better="lower", protocol=seen.protocol, **fields)

        metrics = [metric("bops", candidate, unit="BOP", subject="quantized")]
        if reference is not None:
            metrics.append(metric("bops", reference, unit="BOP", subject="original"))
            metrics.append(metric("macs", reference, unit="MAC", subject="original"))
        return tuple(metrics)
