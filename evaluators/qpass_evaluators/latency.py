"""How fast the model runs and how much memory that takes, beside its teacher on the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.device import machine_of
from qpass.evaluator import Evaluator, Metric, Observation, Role, Subject
from qpass.manager import PassContext
from qpass.memory import peak_rise
from qpass.sampling import Moment, trajectory

FIGURES: Mapping[str, tuple[Literal["higher", "lower"], str]] = {
    "ms_per_step": ("lower", "ms"),
    "images_per_second": ("higher", "1/s"),
    "peak_memory_mb": ("lower", "MB"),
}


@attrs.frozen(kw_only=True)
class Latency(Evaluator):
    """Median times over `repeats` calls at `batch`, in which original and quantized model take turns.

    ms_per_step: one denoise call on random inputs (batch x C x H x W, and a text as long as the pipeline makes it).
    images_per_second: batch / (steps x one sampling step + decoding), where a sampling step is the denoiser with
    guidance and the scheduler.
    peak_memory_mb: the model's own tensors, and what one call allocates on top, / 10^6. Models are called as they
    are: `sampling.compiled` and `sampling.precision` do not apply.
    """

    name: ClassVar[str] = "latency"
    exact: ClassVar[bool] = False
    batch: int = attrs.field(default=8, validator=v.ge(1), metadata={"help": "samples in each timed call"})
    repeats: int = attrs.field(default=5, validator=v.ge(1), metadata={"help": "timed calls; the median counts"})
    warmup: int = attrs.field(default=2, validator=v.ge(0), metadata={"help": "calls before the first timed one"})

    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        """Time the quantized model in turns with its teacher, so that the ratio means something.

        Of the original alone nothing is timed: at another moment it would have other times.
        """
        if subject.role == "original":
            return Observation()
        graphs: dict[Role, GraphModule] = {"original": ctx.reference, "quantized": subject.graph}
        inputs = tuple(x.to(ctx.device) for x in ctx.model.workload(self.batch))
        numbers: dict[str, float] = {}
        with torch.no_grad():
            seconds = self._time({role: _call(graph, inputs) for role, graph in graphs.items()}, ctx.device)
            for role, graph in graphs.items():
                numbers[f"{role} ms_per_step"] = seconds[role] * 1e3
                peak = tensor_bytes(graph) + peak_rise(_call(graph, inputs), ctx.device)
                numbers[f"{role} peak_memory_mb"] = peak / 1e6
            if ctx.model.cannot_sample() is None:
                for role, rate in self._rates(graphs, ctx).items():
                    numbers[f"{role} images_per_second"] = rate
        numbers["speedup"] = seconds["original"] / seconds["quantized"]
        return Observation(numbers=numbers, protocol=self._protocol(ctx))

    def score(self, candidate: Observation, reference: Observation | None) -> Sequence[Metric]:
        numbers = candidate.numbers  # both models'
        roles: tuple[Role, ...] = ("original", "quantized")
        return tuple(
            Metric(
                name=name,
                value=numbers[f"{role} {name}"],
                better=better,
                unit=unit,
                subject=role,
                protocol=candidate.protocol,
            )
            for role in roles
            for name, (better, unit) in FIGURES.items()
            if f"{role} {name}" in numbers
        )

    def _time(self, calls: Mapping[Role, Callable[[], object]], device: torch.device) -> dict[Role, float]:
        """Median seconds of each call. They take turns, and who goes first alternates."""
        took: dict[Role, list[float]] = {role: [] for role in calls}
        for turn in range(self.warmup + self.repeats):
            for role in list(calls)[:: 1 if turn % 2 else -1]:
                seconds = _seconds(calls[role], device)
                if turn >= self.warmup:
                    took[role].append(seconds)
        return {role: statistics.median(times) for role, times in took.items()}

    def _rates(self, graphs: Mapping[Role, GraphModule], ctx: PassContext) -> dict[Role, float]:
        """Images per second of a full sampling, from the time of single steps of it."""
        steps: dict[Role, Callable[[], object]] = {}
        for role, graph in graphs.items():
            moments = self._moments(graph, ctx)
            last = next(moments).after  # the first also makes the noise
            steps[role] = partial(next, moments)
        decode = statistics.median(
            _seconds(lambda: ctx.model.sampler().decode(last), ctx.device) for _ in range(self.repeats)
        )
        seconds = self._time(steps, ctx.device)
        return {role: self.batch / (ctx.sampling.steps * seconds[role] + decode) for role in graphs}

    def _moments(self, graph: GraphModule, ctx: PassContext) -> Iterator[Moment]:
        """Sampling steps without end, one sampling after another."""
        while True:
            yield from trajectory(
                graph, ctx.model.sampler(), ctx.sampling,
                seed=ctx.seed, stream="evaluation", indices=range(self.batch), device=ctx.device,
            )  # fmt: skip

    def _protocol(self, ctx: PassContext) -> dict[str, Any]:
        machine = machine_of(ctx.device)
        allocated = (
            "torch.cuda.max_memory_allocated" if ctx.device.type == "cuda" else "resident memory of the process"
        )
        return {
            "batch": self.batch,
            "repeats": self.repeats,
            "warmup": self.warmup,
            "statistic": "median, original and quantized in turns",
            "device": machine["device"],
            "threads": machine["threads"],
            "precision": "model",
            "compiled": False,
            "images_per_second": "single sampling steps, timed and multiplied, plus decoding",
            "peak_memory_mb": f"the model's tensors, plus the rise of {allocated} during one call",
            "sampler": ctx.sampling.scheduler,
            "steps": ctx.sampling.steps,
            "guidance": ctx.sampling.guidance,
        }


def tensor_bytes(graph: GraphModule) -> int:
    """Bytes of the graph's parameters and buffers, those that are shared only once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*graph.parameters(), *graph.buffers())
    }
    return sum(storages.values())


def _call(graph: GraphModule, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    return lambda: graph(*inputs)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
