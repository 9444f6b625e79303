"""Prints what `output-correction` brings to finished runs, as markdown.

`python tests/benchmarks/correction.py runs/NAME ...`: folders of runs. The pass is applied to each run's model, with
the run's own calibration; images are drawn from noise that no pass has seen, before and after. `1 + k` is what rounding
has left of the signal, at the middle one of the timesteps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from qpass_passes.output_correction import OutputCorrection
from torch import Tensor

from qpass.artifact.folder import load_artifact
from qpass.files import temporary_folder
from qpass.graph import trace
from qpass.manager import PassContext
from qpass.plugins import catalog
from qpass.recipe import read
from qpass.sampling.loop import Denoise, trajectory


def drawn(ctx: PassContext, denoise: Denoise, images: int) -> Tensor:
    """In units of 1/255."""
    *_, last = trajectory(
        denoise, ctx.model.sampler(), ctx.sampling, seed=0, stream="correction", indices=range(images),
        device=torch.device("cpu"),
    )  # fmt: skip
    return last.after.clamp(-1, 1) * 127.5


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a - b).square().mean()))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, with recipe.toml and artifact")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    known = catalog()
    print("| run | PSNR (dB) | corrected | 1 + k |")
    print("|---|---|---|---|")
    for run in options.runs:
        recipe = read(run / "recipe.toml", catalog=known)
        model = recipe.model
        teacher = trace(model.load(), model.example(), call=model.call, dynamic=model.dynamic())
        student = load_artifact(run / "artifact", known).graph
        ctx = PassContext(
            model=model, reference=teacher, sampling=recipe.sampling, calibration=recipe.calibration, catalog=known,
            scratch=Path(temporary_folder()),
        )  # fmt: skip
        exact, before = drawn(ctx, teacher, options.images), drawn(ctx, student, options.images)
        result = OutputCorrection().run(student, ctx)
        after = drawn(ctx, result.graph, options.images)
        ((_, kept),) = result.notes["1 + k by timestep"]["of"]
        middle = kept[len(kept) // 2][1]
        print(f"| {run.name} | {psnr(before, exact):.1f} | {psnr(after, exact):.1f} | {middle:.3f} |", flush=True)


if __name__ == "__main__":
    main()
