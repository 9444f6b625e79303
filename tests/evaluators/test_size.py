"""Size, held to file sizes and to bits counted by hand."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from qpass_evaluators import Size
from qpass_evaluators.size import packed_bits
from torch import Tensor, nn
from torch.fx import GraphModule

from qpass.evaluator import Subject
from qpass.graph import trace
from qpass.spec import NodeSpec, QuantSpec

# first: 8 x 3 x 3 x 3, time: 8 x 1 and a bias of 8, last: 3 x 8 x 3 x 3
FIRST, TIME, LAST = 216, 8, 216
FP32 = 4 * (FIRST + TIME + 8 + LAST)


def test_bytes_are_those_on_disk(
    tmp_path: Path, teacher: GraphModule, context: Any, specify: Callable[..., GraphModule], spec: Any
) -> None:
    """packed_mb is the size of every file in the folder, however deep, and packed_ratio that over the fp32 bytes."""
    (tmp_path / "model.safetensors").write_bytes(b"x" * 300)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "more.bin").write_bytes(b"x" * 17)
    (tmp_path / "qpass.json").write_text("{}")
    size = sum(os.stat(os.path.join(at, f)).st_size for at, _, files in os.walk(tmp_path) for f in files)
    assert size == 319
    graph = specify(teacher, first=spec(4, grain="channel"), last=spec(8))
    ctx, evaluator = context(teacher), Size()
    original = evaluator.observe(Subject(role="original", graph=teacher), ctx)
    candidate = evaluator.observe(Subject(role="quantized", graph=graph, folder=tmp_path), ctx)
    found = {(m.subject, m.name): m for m in evaluator.score(candidate, original)}
    assert found["quantized", "packed_mb"].value == 319 / 1e6
    assert found["quantized", "packed_ratio"].value == 319 / FP32
    bits = (4 * FIRST + 8 * 32) + (8 * LAST + 32)
    assert found["quantized", "bits_per_weight"].value == bits / (FIRST + LAST)
    assert found["quantized", "integer_share"].value == (FIRST + LAST) / (FIRST + TIME + LAST)
    assert found["original", "packed_mb"].value == FP32 / 1e6
    assert found["original", "packed_ratio"].value == 1.0
    assert found["original", "bits_per_weight"].value == 32.0
    assert found["original", "integer_share"].value == 0.0
    assert "estimated" not in found["quantized", "packed_mb"].protocol["bytes"]


def test_without_a_folder_it_says_that_it_estimates(
    teacher: GraphModule, context: Any, specify: Callable[..., GraphModule], spec: Any
) -> None:
    """With no artifact the specs are added up, and the protocol says so."""
    graph = specify(teacher, first=spec(4, grain="channel"))
    seen = Size().observe(Subject(role="quantized", graph=graph), context(teacher))
    assert seen.numbers["packed_mb"] * 1e6 == pytest.approx(FP32 - 4 * FIRST + FIRST / 2 + 8 * 4)
    assert "estimated" in seen.protocol["bytes"]


def test_a_spec_that_is_not_carried_out_saves_nothing(
    teacher: GraphModule, context: Any, specify: Callable[..., GraphModule], spec: Any
) -> None:
    """A node left in floating point holds no integers, whatever was decided for it."""
    graph = specify(teacher, first=attrs.evolve(spec(4), execution="float"))
    numbers = Size().observe(Subject(role="quantized", graph=graph), context(teacher)).numbers
    assert numbers["integer_share"] == 0.0
    assert numbers["packed_ratio"] == 1.0


def test_packed_modules_and_repeated_calls(teacher: GraphModule, context: Any, specify: Any, spec: Any) -> None:
    """A module that hides its weight is as large as the teacher's; one that is called twice counts once."""
    graph = specify(teacher, first=spec(4), last=spec(4))
    graph.first = nn.Identity()
    last = next(n for n in graph.graph.nodes if n.target == "last")
    with graph.graph.inserting_after(last):
        again = graph.graph.call_module("last", last.args)
    again.meta = {**last.meta, "origin": "last#1"}
    numbers = Size().observe(Subject(role="quantized", graph=graph), context(teacher)).numbers
    assert numbers["integer_share"] == (FIRST + LAST) / (FIRST + TIME + LAST)


class Aside(nn.Module):
    """Beside a linear layer of 64 weights, products that are no such layer, on 192 + 128 + 64 + 32 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 24))
        self.up = nn.ConvTranspose1d(8, 4, 4, 2, 1)
        self.table = nn.Parameter(torch.randn(8, 8))
        self.loose = nn.Parameter(torch.randn(4, 8))
        self.register_buffer("angles", torch.randn(5))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        q, k, v = self.normed(self.plain(x)).chunk(3, -1)
        h = torch.einsum("bts,bsc->btc", torch.einsum("btc,bsc->bts", q, k).softmax(-1), v @ self.table)
        h = self.up(h.transpose(1, 2)).transpose(1, 2)
        h = nn.functional.linear(h, self.loose.t() * 2) + t.reshape(-1, 1, 1)
        return h + torch.einsum("t,d->td", self.angles, self.plain.bias).sum()


def test_weights_outside_layers_count(context: Any) -> None:
    """A computed weight, a transposed convolution's and a loose parameter are weights, and no integers."""
    teacher = trace(Aside().eval(), (torch.randn(2, 5, 8), torch.ones(2)))
    graph = copy.deepcopy(teacher)
    node = next(n for n in graph.graph.nodes if n.target == "plain")
    node.meta["qpass"] = NodeSpec(weight=QuantSpec(bits=8, symmetric=True), execution="simulated")
    numbers = Size().observe(Subject(role="quantized", graph=graph), context(teacher)).numbers
    assert numbers["integer_share"] == 64 / (64 + 192 + 128 + 64 + 32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"bits": 8}, 8 * 216 + 64),
        ({"bits": 4, "granularity": "channel", "symmetric": True}, 4 * 216 + 4 * 32),
        ({"bits": (2, 4, 8, 8), "granularity": "channel", "symmetric": True}, 22 * 54 + 4 * 32),
        ({"bits": 4, "granularity": "group", "group_size": 4, "symmetric": False}, 4 * 216 + 4 * 2 * 64),
        ({"format": "nf4", "bits": 4, "granularity": "channel"}, 4 * 216 + 4 * 32),
    ],
)
def test_bits_of_a_weight(text: dict[str, Any], expected: int) -> None:
    """Codes, a scale per parameter set, and a zero point where the format has one: a weight of 4 x 6 x 3 x 3."""
    assert packed_bits(QuantSpec(**text), (4, 6, 3, 3)) == expected
