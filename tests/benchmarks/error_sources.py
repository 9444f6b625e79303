"""Prints where the error of a quantized model's images comes from, as markdown.

`python tests/benchmarks/error_sources.py runs/NAME`: the folder of a finished run. For each step of the sampler: the
squared error of the image, in units of 1/255, where that step alone is the quantized model's and all others full
precision's; how far the two models' outputs are apart at that step; and what an error of the output that is 1 % as
large as the output does to the image, by its spatial frequency. All on images from noise that no pass has seen.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qpass.artifact.folder import load_artifact
from qpass.graph import trace
from qpass.model import ModelAdapter
from qpass.plugins import catalog
from qpass.recipe import read
from qpass.sampling import Sampling
from qpass.sampling.loop import Denoise, trajectory

BANDS = (0.0, 1.5, 3.0, 6.0, 11.0, 1e9)  # cycles in the width of the image
SMALL = 0.01  # of the output: an error small enough to be one of first order


class Sampled:
    """Images by one full-precision model, but for what is done to its output at one step."""

    def __init__(self, model: ModelAdapter, sampling: Sampling, teacher: Denoise, images: int) -> None:
        self.model, self.sampling, self.teacher = model, sampling, teacher
        self.indices = range(images)

    def __call__(self, at: int, change: Callable[[Tensor, tuple[Tensor, ...]], Tensor]) -> Tensor:
        calls = itertools.count()

        def denoise(*inputs: Tensor) -> Tensor:
            output = self.teacher(*inputs)
            return change(output, inputs) if next(calls) == at else output

        *_, last = trajectory(
            denoise, self.model.sampler(), self.sampling, seed=0, stream="error sources", indices=self.indices,
            device=torch.device("cpu"),
        )  # fmt: skip
        return last.after.clamp(-1, 1) * 127.5


def push(low: float, high: float, seed: int, output: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """The output and noise of these frequencies alone, SMALL times as large as each of its rows."""
    noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    height, width = output.shape[-2:]
    radius = (torch.fft.fftfreq(height)[:, None] * height).hypot(torch.fft.rfftfreq(width) * width)
    kept = torch.fft.irfft2(torch.fft.rfft2(noise) * ((radius >= low) & (radius < high)), s=(height, width))
    return output + kept * (SMALL * size(output) / size(kept))


def size(x: Tensor) -> Tensor:
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, with recipe.toml and artifact")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--every", type=int, default=1, help="look at every n-th step only")
    options = parser.parse_args()
    known = catalog()
    recipe = read(options.run / "recipe.toml", catalog=known)
    model = recipe.model
    teacher = trace(model.load(), model.example(), call=model.call, dynamic=model.dynamic())
    student = load_artifact(options.run / "artifact", known).graph
    sampled = Sampled(model, recipe.sampling, teacher, options.images)
    exact = sampled(-1, lambda output, inputs: output)
    apart: list[float] = []

    def rounded(output: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = student(*inputs)
        apart.append(float((found - output).square().mean() / output.square().mean()))
        return found

    bands = list(itertools.pairwise(BANDS))
    names = [f"{low:g} to {high:g}" if high < 1e9 else f"{low:g} on" for low, high in bands]
    print("| step | error of the image | error of the output | " + " | ".join(f"1 % at {n}" for n in names) + " |")
    print("|" + " --- |" * (3 + len(names)))
    for step in range(0, recipe.sampling.steps, options.every):
        alone = float((sampled(step, rounded) - exact).square().mean())
        errors = [sampled(step, partial(push, low, high, step)) - exact for low, high in bands]
        row = " | ".join(f"{float(error.square().mean()):.3g}" for error in errors)
        print(f"| {step} | {alone:.3g} | {apart[-1]:.2%} | {row} |", flush=True)


if __name__ == "__main__":
    main()
