"""Latency: what is measured and how it is named; how fast anything is is not tested here."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from qpass_evaluators import Latency
from qpass_evaluators.latency import tensor_bytes
from torch.fx import GraphModule

from qpass.evaluator import Subject
from qpass.memory import peak_rise
from qpass.model import ModelAdapter
from qpass.sampling import Sampling

NAMES = {"ms_per_step", "images_per_second", "peak_memory_mb"}


def test_both_models_are_measured_side_by_side(teacher: GraphModule, context: Any) -> None:
    """A quantized model's observation holds its teacher's figures too; all are positive and finite."""
    latency, ctx = Latency(batch=2, repeats=2, warmup=1), context(teacher)
    original = latency.observe(Subject(role="original", graph=teacher), ctx)
    candidate = latency.observe(Subject(role="quantized", graph=copy.deepcopy(teacher)), ctx)
    metrics = latency.score(candidate, original)
    assert {(m.subject, m.name) for m in metrics} == {(s, n) for s in ("original", "quantized") for n in NAMES}
    assert all(math.isfinite(m.value) and m.value > 0 for m in metrics)
    value = {(m.subject, m.name): m.value for m in metrics}
    ratio = value["original", "ms_per_step"] / value["quantized", "ms_per_step"]
    assert math.isclose(candidate.numbers["speedup"], ratio)
    assert value["original", "ms_per_step"] == candidate.numbers["original ms_per_step"]
    assert metrics[0].protocol["batch"] == 2
    assert "resident memory" in metrics[0].protocol["peak_memory_mb"]
    assert not Latency.exact


def test_the_original_alone_is_not_timed(teacher: GraphModule, context: Any) -> None:
    """Its figures are those from beside the quantized model, and nothing else of it is ever shown."""
    latency, ctx = Latency(batch=2, repeats=1, warmup=0), context(teacher)
    calls: list[object] = []
    teacher.register_forward_hook(lambda *call: calls.append(call))
    original = latency.observe(Subject(role="original", graph=teacher), ctx)
    assert not calls
    candidate = latency.observe(Subject(role="quantized", graph=copy.deepcopy(teacher)), ctx)
    assert calls
    assert latency.score(candidate, original) == latency.score(candidate, None)


def test_how_the_model_is_called_is_told(teacher: GraphModule, context: Any) -> None:
    """Compiling and bf16 are for drawing images; the protocol says that what was timed had neither."""
    ctx = context(teacher, sampling=Sampling(steps=2, precision="bfloat16", compiled=True))
    seen = Latency(batch=1, repeats=1, warmup=0).observe(Subject(role="quantized", graph=teacher), ctx)
    assert (seen.protocol["precision"], seen.protocol["compiled"]) == ("model", False)


def test_a_model_that_cannot_sample_has_no_rate(teacher: GraphModule, context: Any, mute: ModelAdapter) -> None:
    """Without sampling there are no images per second, and the rest is measured all the same."""
    latency, ctx = Latency(batch=2, repeats=1, warmup=0), context(teacher, model=mute)
    seen = latency.observe(Subject(role="quantized", graph=copy.deepcopy(teacher)), ctx)
    assert {m.name for m in latency.score(seen, None)} == NAMES - {"images_per_second"}


def test_calls_take_turns() -> None:
    """Warm-up is not counted, and who goes first alternates."""
    order: list[str] = []
    calls = {"original": lambda: order.append("o"), "quantized": lambda: order.append("q")}
    Latency(warmup=1, repeats=3)._time(calls, torch.device("cpu"))  # type: ignore[arg-type]
    assert "".join(order) in ("qooqqooq", "oqqooqqo")


def test_a_shared_tensor_is_counted_once(teacher: GraphModule) -> None:
    """The model's own memory is that of its distinct tensors."""
    alone = tensor_bytes(teacher)
    assert alone == 4 * (216 + 8 + 8 + 216)
    teacher.again = teacher.first
    teacher.register_buffer("view", teacher.last.weight.detach()[0])
    assert tensor_bytes(teacher) == alone


def test_the_rise_holds_what_a_call_allocates() -> None:
    """A call that fills 64 MB for a moment raises the peak by about that much."""
    rise = peak_rise(lambda: [np.ones(8 << 20).sum() for _ in range(3)], torch.device("cpu"))
    assert 40e6 < rise < 200e6
