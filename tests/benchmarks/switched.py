"""Prints what images come of a quantized model at some steps and full precision at the others, as markdown.

`python tests/benchmarks/switched.py runs/NAME ...`: folders of finished runs. Images are drawn from noise that no pass
has seen. `edges` is how far a value is from the mean of its four neighbours, root mean square, in units of 1/255: grain
shows there, and the first row of each run has full precision's.
"""

from __future__ import annotations

import torch
from finished import Finished, asked, grain, opened, psnr
from torch import Tensor

from qpass.sampling.loop import Denoise


def switched(run: Finished, steps: range) -> Denoise:
    """The quantized model at these steps of a sampling, counted from its first."""
    calls = iter(range(10**6))

    def denoise(*inputs: Tensor) -> Tensor:
        output: Tensor = (run.student if next(calls) in steps else run.teacher)(*inputs)
        return output

    return denoise


@torch.inference_mode()
def main() -> None:
    options = asked(__doc__)
    print("| run | quantized at steps | edges | PSNR (dB) |")
    print("|---|---|---|---|")
    for folder in options.runs:
        run = opened(folder)
        count = run.recipe.sampling.steps
        exact = run.drawn(run.teacher, run.recipe.sampling, stream="clipping", images=options.images)
        print(f"| {run.name} | none | {grain(exact):.1f} | |", flush=True)
        first = 3 * count // 10
        for steps in (range(count), range(first), range(first, count), range(8 * count // 10, count)):
            found = run.drawn(switched(run, steps), run.recipe.sampling, stream="clipping", images=options.images)
            told = f"{steps.start} to {steps.stop - 1}"
            print(f"| {run.name} | {told} | {grain(found):.1f} | {psnr(found, exact):.1f} |", flush=True)


if __name__ == "__main__":
    main()
