"""Prints the peak memory of one block of reconstruction on a model of DiT-XL/2's shape, as markdown.

`python tests/benchmarks/engine_xl.py --rows 32 --batch 4`: 28 blocks of width 1152 on latents of 32 x 32, with
random weights, read from a temporary folder of 3 GB as a recipe would. Weights are put at 4 bits, and `brecq` with
`only` learns one block; the blocks before it are rolled forward. The peak is that of the whole process, loading and
tracing included. The engine works on one graph, which is its own teacher; `qpass run` keeps the original beside it,
for what else asks about it: `--teacher` does so too. Eight GB are what is asked for.
"""

from __future__ import annotations

import argparse
import copy
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import attrs
import torch
from diffusers import DiTTransformer2DModel
from qpass_models.diffusers_model import DiffusersModel
from qpass_passes.assign import Assign
from qpass_passes.brecq import Brecq
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.quantizers.absmax import AbsMax

from qpass.activations import Samples
from qpass.files import temporary_folder
from qpass.graph import trace
from qpass.manager import PassContext
from qpass.plugins import catalog
from qpass.progress import for_terminal, peak_memory_mb
from qpass.recipe import bytes_of
from qpass.sampling import Sampling


@attrs.frozen(kw_only=True)
class Noise(UniformSteps):
    """Rows of noise at random timesteps and classes."""

    name = "noise"

    def compute(self, graph: object, ctx: PassContext) -> Samples:
        source = torch.Generator().manual_seed(0)
        x = torch.randn(self.samples, 4, 32, 32, generator=source).to(ctx.model.example(1)[0].dtype)
        t = torch.randint(0, 1000, (self.samples,), generator=source)
        return Samples(inputs=(x, t, torch.randint(0, 1000, (self.samples,), generator=source)))


def write(folder: Path) -> int:
    """Save a random model, in a process of its own, so that its memory does not count; returns its parameters."""
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        return other.submit(_write, str(folder)).result()


def _write(folder: str) -> int:
    torch.manual_seed(0)
    module = DiTTransformer2DModel(
        num_layers=28, num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, sample_size=32,
        patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    module.save_pretrained(folder)
    return sum(p.numel() for p in module.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=0)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--budget", default="2GB", help="memory_budget")
    parser.add_argument(
        "--teacher", action="store_true", help="keep another copy of the original, as `qpass run` does"
    )
    parser.add_argument("--dtype", default="float32", help="of the model as it is loaded: float32 or bfloat16")
    options = parser.parse_args()
    folder = temporary_folder()
    size = write(folder)
    adapter = DiffusersModel(path=str(folder), dtype=options.dtype)
    started = time.perf_counter()
    with for_terminal() as progress:
        teacher = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
        ctx = PassContext(
            model=adapter, reference=teacher, sampling=Sampling(steps=1), calibration=Noise(samples=options.rows),
            catalog=catalog(), memory_budget=bytes_of(options.budget), scratch=Path(temporary_folder()),
            progress=progress,
        )  # fmt: skip
        graph = (
            Assign(weight="int4 channel").run(copy.deepcopy(teacher) if options.teacher else teacher, ctx).graph
        )
        loaded = peak_memory_mb()
        step = Brecq(
            only=(f"transformer_blocks.{options.block}",), iterations=options.iterations, rows=options.rows,
            batch=options.batch, weight=AbsMax(),
        )  # fmt: skip
        notes = step.run(graph, ctx).notes
    ((name, told),) = notes["blocks"].items()
    print(
        "| parameters | copies | block | rows | batch | loss before, after | seconds | peak MB once traced | peak MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {size / 1e6:.0f} M | {1 + options.teacher} | {name} | {options.rows} | {options.batch} | {told['loss']} | "
        f"{time.perf_counter() - started:.0f} | {loaded:.0f} | {peak_memory_mb():.0f} |"
    )


if __name__ == "__main__":
    main()
