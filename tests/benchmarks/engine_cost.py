"""Prints how the engine's time grows with the blocks and with the rows, as markdown.

`python tests/benchmarks/engine_cost.py --pass brecq --rows 1024 --width 64`: chains of 4 and of 16 equal residual
blocks, at so many rows and at four times as many, at fixed iterations for each block. What is timed is the whole pass
without its calibration set, which is noise here: fitting, trying, learning and rolling forward. Linear cost is a factor
of 4 in both directions, or less where something does not grow; at most 4.4 is asked for.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import attrs
import torch
from qpass_models.in_memory import InMemory
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from torch import Tensor, nn

from qpass.activations import Samples
from qpass.files import temporary_folder
from qpass.graph import trace
from qpass.manager import PassContext
from qpass.plugins import Catalog, catalog
from qpass.recipe import bytes_of
from qpass.sampling import Sampling

SIZE = 16  # of the images


class ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(nn.functional.silu(self.a(x)))


class Chain(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
        self.blocks = nn.ModuleList(ResBlock(width) for _ in range(count))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@attrs.frozen(kw_only=True)
class Noise(UniformSteps):
    """Rows of noise."""

    name = "noise"

    def compute(self, graph: object, ctx: object) -> Samples:
        source = torch.Generator().manual_seed(0)
        return Samples(
            inputs=(torch.randn(self.samples, 3, SIZE, SIZE, generator=source), torch.zeros(self.samples))
        )


def seconds(known: Catalog, options: argparse.Namespace, blocks: int, rows: int) -> float:
    """Of one pass over one chain."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    graph = trace(Chain(blocks, options.width), (torch.randn(2, 3, SIZE, SIZE), torch.zeros(2)))
    # the pass asks whose graph it is; the adapter of any module answers
    tiny = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    ctx = PassContext(
        model=InMemory(module=tiny), reference=graph, sampling=Sampling(steps=1), calibration=Noise(samples=rows),
        catalog=known, memory_budget=bytes_of(options.budget), scratch=Path(temporary_folder()),
    )  # fmt: skip
    graph = Assign(weight="int4 channel").run(graph, ctx).graph
    ctx.get(ctx.calibration, graph)
    step = known.classes["passes"][options.step](iterations=options.iterations, rows=rows, settle=False)
    started = time.perf_counter()
    step.run(graph, ctx)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pass", dest="step", default="brecq", choices=["adaround", "brecq", "qdrop"])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=100, help="for each block")
    parser.add_argument("--budget", default="4GB", help="memory_budget; a small one puts rows on disk")
    options = parser.parse_args()
    known = catalog()
    seconds(known, options, 1, 64)  # the first run of anything is slow
    print(f"{options.step}, {torch.get_num_threads()} threads, {options.iterations} iterations for each block\n")
    print("| blocks | rows | seconds | times the first |\n|---|---|---|---|", flush=True)
    base = None
    for blocks, rows in ((4, options.rows), (16, options.rows), (4, 4 * options.rows)):
        spent = seconds(known, options, blocks, rows)
        base = base or spent
        print(f"| {blocks} | {rows} | {spent:.1f} | {spent / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
