"""Traces each tiny model once per session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

import qpass.graph

sys.path.insert(0, str(Path(__file__).parent))  # `tiny` serves the benchmarks too
import tiny

Zoo = Callable[..., tuple[tiny.Tiny, GraphModule]]


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def zoo() -> Zoo:
    """`zoo(name, dtype)`: the model and its graph, traced at batch 2. Copy the graph before a rewrite."""

    @cache
    def get(name: str, dtype: torch.dtype = torch.float32) -> tuple[tiny.Tiny, GraphModule]:
        model = tiny.make(name, dtype)
        example = model.example(2)
        return model, qpass.graph.trace(model.module, example, call=model.call, dynamic=model.dynamic)

    return get
