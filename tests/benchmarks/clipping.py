"""Prints what clipping on the way does to a quantized model's images, as markdown.

`python tests/benchmarks/clipping.py runs/NAME ...`: folders of finished runs of one model. Images are drawn from noise
that no pass has seen, with the sampler's clip of the predicted image (x0) and without; the recipe's other settings
stay. `clipped` is the share of values outside the range at the first step, quantized and in full precision; `colours`
how far the mean colours of images lie apart, their standard deviation in units of 1/255.
"""

from __future__ import annotations

import attrs
import torch
from finished import Finished, asked, opened, psnr
from torch import Tensor

from qpass.sampling import Sampling, make_scheduler
from qpass.sampling.ddim import predicted
from qpass.sampling.loop import Denoise


def drawn(run: Finished, denoise: Denoise, sampling: Sampling, images: int) -> tuple[Tensor, float]:
    """Images, and the share of x0 that the first step would clip."""
    outputs: list[Tensor] = []

    def watched(*inputs: Tensor) -> Tensor:
        output = denoise(*inputs)
        if not outputs:
            outputs.extend([inputs[0], output])
        return output

    found = run.drawn(watched, sampling, stream="clipping", images=images)
    scheduler = make_scheduler(sampling, run.recipe.model.sampler().scheduler_config)
    a = scheduler.alphas_cumprod[int(scheduler.timesteps[0])]
    x0, _ = predicted(scheduler.config.prediction_type, outputs[1], outputs[0], a)
    return found, float((x0.abs() > 1).float().mean())


def colours(images: Tensor) -> float:
    """The standard deviation over images of their mean colours, over all channels."""
    return float(images.mean((2, 3)).var(0).mean().sqrt())


@torch.inference_mode()
def main() -> None:
    options = asked(__doc__)
    print("| run | clip | clipped | clipped in full precision | colours | in full precision | PSNR (dB) |")
    print("|---|---|---|---|---|---|---|")
    for folder in options.runs:
        run = opened(folder)
        for clip in ("always", "never"):
            sampling = attrs.evolve(run.recipe.sampling, scheduler="ddim", clip=clip)
            exact, without = drawn(run, run.teacher, sampling, options.images)
            found, share = drawn(run, run.student, sampling, options.images)
            print(
                f"| {run.name} | {clip} | {share:.0%} | {without:.0%} | {colours(found):.0f} | {colours(exact):.0f} "
                f"| {psnr(found, exact):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
