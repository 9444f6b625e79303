"""Prints what tracing keeps, class by class, as markdown: `python tests/benchmarks/trace_table.py`."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

import qpass.graph as graph

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
import tiny

NAMES = tiny.NAMES
COLUMNS = (
    "class", "parameters", "nodes", "trace s",
    "fused: max diff at batch 1/2/5", "fused: max (relative) diff at batch 70",
    "split: relative diff", "bf16: max diff", "blocks alone: count, max diff at batch 5", "teacher untouched",
)  # fmt: skip


class Recorder(Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def trace(model: tiny.Tiny) -> GraphModule:
    return graph.trace(model.module, model.example(2), call=model.call, dynamic=model.dynamic)


def inputs(model: tiny.Tiny, *batches: int) -> Iterator[tuple[torch.Tensor, ...]]:
    for batch in batches:
        for size in (8, (16, 8)) if model.name in tiny.RESIZABLE else (None,):
            yield model.example(batch, seed=batch, size=size)


def furthest(gm: GraphModule, model: tiny.Tiny, *batches: int) -> tuple[float, float]:
    """The largest absolute, and the largest relative difference to the model in eager mode."""
    pairs = [(gm(*x).double(), model.eager(x).double()) for x in inputs(model, *batches)]
    return (
        max(float((a - b).abs().max()) for a, b in pairs),
        max(float((a - b).norm() / b.norm()) for a, b in pairs),
    )


def alone(gm: GraphModule, model: tiny.Tiny) -> tuple[int, float]:
    """How many blocks, and the largest difference of one run alone, at another batch and size."""
    *_, example = inputs(model, 5)
    recorder = Recorder(gm)
    recorder.run(*example)
    cut, worst = graph.blocks(gm), 0.0
    for block in cut:
        made = graph.block_module(gm, block)(*(recorder.values[node] for node in block.inputs))
        for value, node in zip(made, block.outputs, strict=True):
            worst = max(worst, float((value - recorder.values[node]).abs().max()))
    return len(cut), worst


@torch.no_grad()
def row(name: str) -> list[str]:
    model = tiny.make(name)
    before = copy.deepcopy(model.module.state_dict())
    start = time.perf_counter()
    gm = trace(model)
    seconds = time.perf_counter() - start
    past, ratio = furthest(gm, model, 70)
    split = copy.deepcopy(gm)
    graph.split_attention(split)
    half = tiny.make(name, torch.bfloat16)
    count, worst = alone(gm, model)
    near, apart = furthest(gm, model, 1, 2, 5)[0], furthest(split, model, 5)[1]
    short = furthest(trace(half), half, 5)[0]
    shared = {p.data_ptr() for p in gm.parameters()} & {p.data_ptr() for p in model.module.parameters()}
    same = all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())
    return [
        f"{type(model.module).__name__} ({name})",
        f"{sum(p.numel() for p in model.module.parameters()):,}",
        str(len(gm.graph.nodes)),
        f"{seconds:.1f}",
        f"{near:.1g}",
        f"{past:.1g} ({ratio:.1g})",
        f"{apart:.1g}",
        f"{short:.1g}",
        f"{count}, {worst:.1g}",
        "yes" if same and not shared else "NO",
    ]


def main() -> None:
    torch.set_num_threads(2)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS))
    for name in NAMES:
        print("| " + " | ".join(row(name)) + " |", flush=True)


if __name__ == "__main__":
    main()
