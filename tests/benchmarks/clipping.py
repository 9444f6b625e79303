"""Prints what clipping on the way does to a quantized model's images, as markdown.

`python tests/benchmarks/clipping.py runs/NAME ...`: folders of finished runs of one model. Images are drawn from noise
that no pass has seen, with the sampler's clip of the predicted image (x0) and without; the recipe's other settings
stay. `clipped` is the share of values outside the range at the first step, quantized and in full precision; `colours`
how far the mean colours of images lie apart, their standard deviation in units of 1/255.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import attrs
import torch
from torch import Tensor

from qpass.artifact.folder import load_artifact
from qpass.graph import trace
from qpass.model import ModelAdapter
from qpass.plugins import catalog
from qpass.recipe import read
from qpass.sampling import Sampling, make_scheduler
from qpass.sampling.loop import Denoise, trajectory


def drawn(model: ModelAdapter, sampling: Sampling, denoise: Denoise, images: int) -> tuple[Tensor, float]:
    """Images in units of 1/255, and the share of x0 that the first step would clip."""
    outputs: list[Tensor] = []

    def watched(*inputs: Tensor) -> Tensor:
        output = denoise(*inputs)
        if not outputs:
            outputs.extend([inputs[0], output])
        return output

    sampler = model.sampler()
    *_, last = trajectory(
        watched, sampler, sampling, seed=0, stream="clipping", indices=range(images), device=torch.device("cpu")
    )
    scheduler = make_scheduler(sampling, sampler.scheduler_config)
    a = scheduler.alphas_cumprod[int(scheduler.timesteps[0])]
    x, e = outputs
    x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
    return last.after.clamp(-1, 1) * 127.5, float((x0.abs() > 1).float().mean())


def colours(images: Tensor) -> float:
    """The standard deviation over images of their mean colours, over all channels."""
    return float(images.mean((2, 3)).var(0).mean().sqrt())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, with recipe.toml and artifact")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    known = catalog()
    print("| run | clip | clipped | clipped in full precision | colours | in full precision | PSNR (dB) |")
    print("|---|---|---|---|---|---|---|")
    for run in options.runs:
        recipe = read(run / "recipe.toml", catalog=known)
        model = recipe.model
        teacher = trace(model.load(), model.example(), call=model.call, dynamic=model.dynamic())
        student = load_artifact(run / "artifact", known).graph
        for clip in ("always", "never"):
            sampling = attrs.evolve(recipe.sampling, scheduler="ddim", clip=clip)
            exact, without = drawn(model, sampling, teacher, options.images)
            found, share = drawn(model, sampling, student, options.images)
            psnr = float(10 * torch.log10(255**2 / (found - exact).square().mean()))
            print(
                f"| {run.name} | {clip} | {share:.0%} | {without:.0%} | {colours(found):.0f} | {colours(exact):.0f} "
                f"| {psnr:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
