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
from finished import Finished, opened
from torch import Tensor

BANDS = (0.0, 1.5, 3.0, 6.0, 11.0, 1e9)  # cycles in the width of the image
SMALL = 0.01  # of the output: an error small enough to be one of first order


class Sampled:
    """Images by one full-precision model, but for what is done to its output at one step."""

    def __init__(self, run: Finished, images: int) -> None:
        self.run, self.images = run, images

    def __call__(self, at: int, change: Callable[[Tensor, tuple[Tensor, ...]], Tensor]) -> Tensor:
        calls = itertools.count()

        def denoise(*inputs: Tensor) -> Tensor:
            output = self.run.teacher(*inputs)
            return change(output, inputs) if next(calls) == at else output

        return self.run.drawn(denoise, self.run.recipe.sampling, stream="error sources", images=self.images)


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
    run = opened(options.run)
    sampled = Sampled(run, options.images)
    exact = sampled(-1, lambda output, inputs: output)
    apart: list[float] = []

    def rounded(output: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = run.student(*inputs)
        apart.append(float((found - output).square().mean() / output.square().mean()))
        return found

    bands = list(itertools.pairwise(BANDS))
    names = [f"{low:g} to {high:g}" if high < 1e9 else f"{low:g} on" for low, high in bands]
    print("| step | error of the image | error of the output | " + " | ".join(f"1 % at {n}" for n in names) + " |")
    print("|" + " --- |" * (3 + len(names)))
    for step in range(0, run.recipe.sampling.steps, options.every):
        alone = float((sampled(step, rounded) - exact).square().mean())
        errors = [sampled(step, partial(push, low, high, step)) - exact for low, high in bands]
        row = " | ".join(f"{float(error.square().mean()):.3g}" for error in errors)
        print(f"| {step} | {alone:.3g} | {apart[-1]:.2%} | {row} |", flush=True)


if __name__ == "__main__":
    main()
