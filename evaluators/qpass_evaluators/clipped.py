"""How much of the predicted image a sampler's clip takes away at its first step, where an error weighs most."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from qpass.manager import PassContext
from qpass.sampling import make_scheduler, trajectory
from qpass.sampling.ddim import predicted


@torch.no_grad()
def clipped(graph: GraphModule, ctx: PassContext, rows: int) -> float | None:
    """The share of values out of range, over images 0 to rows - 1; None where the sampler clips nothing."""
    sampler = ctx.model.sampler()
    scheduler = make_scheduler(ctx.sampling, sampler.scheduler_config)
    config = scheduler.config
    if not config.get("clip_sample") or config.get("thresholding"):
        return None
    outside = total = 0
    for start in range(0, rows, ctx.sampling.batch):
        indices = range(start, min(start + ctx.sampling.batch, rows))
        first = next(
            trajectory(
                graph, sampler, ctx.sampling,
                seed=ctx.seed, stream="evaluation", indices=indices, device=ctx.device,
            )
        )  # fmt: skip
        a = scheduler.alphas_cumprod[int(first.step.t)]
        output = first.output[:, : sampler.shape[0]]  # a learned variance follows the noise
        image, _ = predicted(config.prediction_type, output, first.before, a)
        outside += int((~(image.abs() <= config.clip_sample_range)).sum())  # NaN is in no range
        total += image.numel()
    return outside / total
