"""Prints how much sooner the engine reaches the loss of a plain loop, as markdown.

`python tests/benchmarks/engine_table.py --rows 5120`: on one block of each zoo model, weights at 4 bits. The plain loop
is what the papers describe and research code does: all inputs in memory, eager, fp32, 20,000 iterations of Adam at
1e-3, batch 32. Ours is tried at growing budgets until its loss, hard-rounded, fp32, on rows that neither learned
from, is no greater; the seconds are those of that budget alone, with compilation where there is any. Then again with
each thing that makes it fast switched off.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from plain_loop import Grid, Plain, error
from qpass_passes.assign import Assign
from qpass_passes.fitting import fit_weights
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import Objective, reconstruct
from qpass_passes.reconstruction.chain import chain, cut_into
from qpass_passes.reconstruction.rows import Pool
from qpass_passes.reconstruction.soft import SoftBlock
from qpass_passes.reconstruction.streams import Streams
from torch import Tensor
from torch.fx import GraphModule

from qpass.files import temporary_folder
from qpass.graph import Block, block_module, trace
from qpass.manager import PassContext
from qpass.plugins import catalog
from qpass.progress import Task, for_terminal
from qpass.recipe import read

BLOCKS = {"cifar10-unet": "mid_block.resnets.0", "cifar10-dit": "transformer_blocks.0"}
OURS = {"rate": 0.15, "batch": 16, "polish": 1000}  # what the preset fast has, and polishing, which it has not
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, not polished": {"polish": 0},
    "ours, bf16": {"precision": "bfloat16"},
    "ours, compiled": {"compiled": True},
    "ours, batch 32": {"batch": 32},
    "ours, rate 1e-3": {"rate": 1e-3},
}
BUDGETS = (125, 250, 500, 1000, 2000, 4000, 8000, 16_000)
SEED = 0


@torch.no_grad()
def prepared(model: str, rows: int) -> tuple[GraphModule, Block, Streams]:
    """The block's inputs, as full precision and as the rounded blocks before it give them."""
    known = catalog()
    recipe = read("w4a8", catalog=known, overrides=[f"model.use={model}", f"calibration.samples={-(-rows // 20)}"])
    adapter = recipe.model
    teacher = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
    with for_terminal() as progress:
        ctx = PassContext(
            model=adapter, reference=teacher, sampling=recipe.sampling, calibration=recipe.calibration,
            catalog=known, progress=progress, scratch=temporary_folder(),
        )  # fmt: skip
        graph = Assign(weight="int4 channel", input="int8 tensor").run(copy.deepcopy(teacher), ctx).graph
        fit_weights(graph, Mse(), ctx)
        samples = ctx.get(recipe.calibration, graph)
    samples = samples.take(torch.arange(min(rows, len(samples))))
    graph.requires_grad_(False)
    cut = chain(graph, cut_into(graph, "block"), samples, ctx.device, budget=16 << 30)
    streams = Streams(graph, cut, samples, Pool(16 << 30, Path()), ctx.device)
    for block, gone in zip(cut.blocks, cut.dies, strict=True):
        streams.advance_full(block, block_module(graph, block))
        if block.name == BLOCKS[model]:
            return graph, block, streams
        soft = SoftBlock(graph, block, weights=False, steps=False).eval()
        streams.advance_rounded(block, soft)
        streams.drop(gone)
    raise SystemExit(f"{model} has no block {BLOCKS[model]}")


def split(count: int) -> tuple[Tensor, Tensor]:
    """The rows that are held out and those that are learned from: the engine's own."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    apart = max(1, min(128, count // 8))
    return order[:apart], order[apart:]


def grids_of(graph: GraphModule, block: Block) -> dict[str, Grid]:
    """Of the block's weights, by layer; scales are shaped to them."""
    soft = SoftBlock(graph, block, weights=True, steps=False)
    return {
        home.removesuffix(".weight_q"): Grid(one.scale, int(one.low), int(one.high))
        for home, one in soft.layers.items()
    }


def plain(graph: GraphModule, block: Block, streams: Streams, iterations: int) -> tuple[float, float]:
    """The loop's loss and seconds."""
    every = torch.arange(len(streams.samples))
    inputs = [streams.read_rounded(node, every) for node in block.inputs]
    target = streams.read_full(block.outputs[0], every)
    held, train = split(len(every))
    torch.manual_seed(SEED)
    loop = Plain(copy.deepcopy(block_module(graph, block)), grids_of(graph, block))
    seconds = loop.learn([x[train] for x in inputs], target[train], iterations, 32)
    with torch.no_grad():
        return float(error(loop.run([x[held] for x in inputs], True), target[held])), seconds


def ours(graph: GraphModule, block: Block, streams: Streams, objective: Objective) -> tuple[float, float]:
    soft = SoftBlock(graph, block, weights=True, steps=False)
    started = time.perf_counter()
    found = reconstruct(soft, streams.data(), objective, (0,), SEED, Task())
    return found.after, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5120)
    parser.add_argument("--iterations", type=int, default=20_000, help="of the plain loop")
    parser.add_argument("--models", nargs="*", default=list(BLOCKS))
    parser.add_argument(
        "--loop", nargs=2, type=float, metavar=("LOSS", "SECONDS"), help="of the plain loop, where it ran before"
    )
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, help="iterations that ours is tried at")
    parser.add_argument("--rate", type=float, default=OURS["rate"], help="of ours")
    parser.add_argument(
        "--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="what is tried"
    )
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {options.rows} rows\n")
    print("| model | block | how | iterations | loss | seconds | times sooner |", flush=True)
    print("|---|---|---|---|---|---|---|")
    for model in options.models:
        graph, block, streams = prepared(model, options.rows)

        def row(how: str, iterations: Any, loss: float, seconds: float, base: float, name: str = model) -> None:
            told = f"{loss:.5g} | {seconds:.1f} | {base / seconds:.1f}"
            print(f"| {name} | {BLOCKS[name]} | {how} | {iterations} | {loss and told} |", flush=True)

        wanted, base = options.loop or plain(graph, block, streams, options.iterations)
        row("plain loop", options.iterations, wanted, base, base)
        best = Objective(rate=options.rate, batch=int(OURS["batch"]), polish=int(OURS["polish"]))
        for how in options.variants:
            for iterations in options.budgets:
                objective = attrs.evolve(best, **VARIANTS[how], iterations=iterations)
                loss, seconds = ours(graph, block, streams, objective)
                if loss <= wanted:
                    break
            row(how if loss <= wanted else f"{how}: not reached", iterations, loss, seconds, base)


if __name__ == "__main__":
    main()
