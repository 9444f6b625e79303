"""Quantization noise inside a model: signal and noise power of every quantized node at every sampling step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qpass.manager import PassContext
from qpass.sampling import trajectory
from qpass.spec import NodeSpec

OUTPUT = "output"  # the predicted noise; no node's origin, since those are module names


@attrs.frozen(kw_only=True)
class Power:
    """Sums of s² and of (s - q)², where s is the teacher's value and q the quantized one."""

    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: Power) -> Power:
        return Power(signal=self.signal + other.signal, noise=self.noise + other.noise)

    @property
    def sqnr(self) -> float:
        """10 log10(signal / noise) in dB; infinite when both are equal.

        >>> Power(signal=100.0, noise=1.0).sqnr
        20.0
        """
        if self.noise == 0:
            return math.inf
        return 10 * (math.log10(self.signal) - math.log10(self.noise)) if self.signal else -math.inf


@attrs.frozen(kw_only=True)
class NoiseTable:
    """`cells[origin][step]`, with the predicted noise under `OUTPUT`; `times` are the steps' timesteps."""

    times: tuple[float, ...]
    cells: Mapping[str, tuple[Power, ...]]

    def pooled(self, origin: str) -> Power:
        """Over all steps."""
        return sum(self.cells[origin], start=Power())


def measure(graph: GraphModule, ctx: PassContext, rows: int) -> NoiseTable:
    """Run teacher and graph on the inputs of the teacher's own sampling of images 0 to rows - 1.

    Only sums are kept. In memory at a time: the watched activations of one batch.
    """
    ours, theirs = joined(graph, ctx.reference)
    sampler, times, sums = ctx.model.sampler(), dict[int, float](), _Sums()
    teacher, student = _Watching(ctx.reference, theirs, sums.keep), _Watching(graph, ours, sums.compare)

    def denoise(*inputs: Tensor) -> Tensor:
        output: Tensor = teacher.run(*inputs)
        sums.keep(OUTPUT, output[:, : sampler.shape[0]])
        return output

    with torch.no_grad(), ctx.progress.task("noise by node", rows * ctx.sampling.steps) as task:
        for start in range(0, rows, ctx.sampling.batch):
            indices = range(start, min(start + ctx.sampling.batch, rows))
            for moment in trajectory(
                denoise, sampler, ctx.sampling,
                seed=ctx.seed, stream="evaluation", indices=indices, device=ctx.device,
            ):  # fmt: skip
                times[moment.index], sums.step = moment.step.t, moment.index
                sums.compare(OUTPUT, student.run(*moment.inputs)[:, : sampler.shape[0]])
                task.advance(len(indices))
    seen = [origin for origin in (*ours.values(), OUTPUT) if (origin, 0) in sums.totals]
    cells = {origin: tuple(sums.power(origin, step) for step in times) for origin in seen}
    return NoiseTable(times=tuple(times.values()), cells=cells)


class _Sums:
    """The teacher's values of one call, until the student's come; and sums of both, in float64."""

    def __init__(self) -> None:
        self.step = 0
        self.signals: dict[str, Tensor] = {}
        self.totals: dict[tuple[str, int], Tensor] = {}  # (origin, step): signal and noise power

    def keep(self, origin: str, value: Tensor) -> None:
        self.signals[origin] = value.clone()  # a later node may write into it

    def compare(self, origin: str, value: Tensor) -> None:
        signal = self.signals.pop(origin, None)
        if signal is None or signal.shape != value.shape:  # a rewrite has given it another meaning
            return
        signal = signal.double()
        both = torch.stack([signal.square().sum(), (signal - value.double()).square().sum()])
        key = (origin, self.step)
        self.totals[key] = self.totals[key] + both if key in self.totals else both

    def power(self, origin: str, step: int) -> Power:
        signal, noise = self.totals[origin, step].tolist()
        return Power(signal=signal, noise=noise)


def joined(graph: GraphModule, reference: GraphModule) -> tuple[dict[Node, str], dict[Node, str]]:
    """The graph's quantized nodes and the teacher's nodes of the same origin, each with that origin.

    An origin that does not name exactly one node on either side is left out, such as the matmuls of an
    attention that the teacher computes in one piece.
    """
    ours = _unique({n: n.meta["origin"] for n in graph.graph.nodes if "origin" in n.meta and _quantized(n)})
    theirs = _unique({n: n.meta["origin"] for n in reference.graph.nodes if "origin" in n.meta})
    both = set(ours.values()) & set(theirs.values())
    return (
        {node: origin for node, origin in ours.items() if origin in both},
        {node: origin for node, origin in theirs.items() if origin in both},
    )


def _quantized(node: Node) -> bool:
    spec = node.meta.get("qpass")
    return isinstance(spec, NodeSpec) and (spec.weight is not None or any(spec.inputs))


def _unique(origins: dict[Node, str]) -> dict[Node, str]:
    times = Counter(origins.values())
    return {node: origin for node, origin in origins.items() if times[origin] == 1}


class _Watching(Interpreter):
    """Runs a graph and shows the values of some of its nodes as they are computed."""

    def __init__(
        self, graph: GraphModule, watched: Mapping[Node, str], see: Callable[[str, Tensor], None]
    ) -> None:
        super().__init__(graph)
        self.watched, self.see = watched, see

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.watched and isinstance(value, Tensor):
            self.see(self.watched[n], value)
        return value
