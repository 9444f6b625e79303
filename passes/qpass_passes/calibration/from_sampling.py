"""Calibration sets that are rows of the full-precision model's own samplings: each kind only says which rows."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from qpass.activations import Samples
from qpass.analysis import Analysis, Tensors
from qpass.errors import ModelError
from qpass.manager import PassContext
from qpass.sampling import make_scheduler, trajectory


class FromSampling(Analysis[Samples]):
    """Images are sampled from a stream of noise of their own, and the denoiser's inputs are kept where `choose` says.

    Rows are ordered by step, then as they were sampled. Under guidance the denoiser is called with and without the
    condition: both rows are kept, or neither.
    """

    of: ClassVar[Literal["reference", "graph"]] = "reference"
    stored: ClassVar[bool] = True

    @abstractmethod
    def choose(self, times: Tensor, graph: GraphModule, ctx: PassContext) -> Tensor:
        """Which rows are kept: booleans, steps x images. `times` (steps,) are the sampling's timesteps in order."""

    def compute(self, graph: GraphModule, ctx: PassContext) -> Samples:
        """Sample, and keep what the denoiser was given."""
        return rows(self.chosen(graph, ctx), graph, ctx, "calibration set")

    def chosen(self, graph: GraphModule, ctx: PassContext) -> Tensor:
        """Which rows of this recipe's sampling are kept, steps x images."""
        if reason := ctx.model.cannot_sample():
            raise ModelError(f"calibration {self.name!r} samples from the model, but {reason}")
        scheduler = make_scheduler(ctx.sampling, ctx.model.sampler().scheduler_config)
        return self.choose(scheduler.timesteps, graph, ctx)

    def dump(self, value: Samples) -> Tensors:
        """The rows, numbered by input."""
        return {f"{'fixed' if i in value.unbatched else 'input'}{i}": part for i, part in enumerate(value.inputs)}

    def restore(self, tensors: Tensors) -> Samples:
        """The rows again."""
        fixed = tuple(i for i in range(len(tensors)) if f"fixed{i}" in tensors)
        names = (f"{'fixed' if i in fixed else 'input'}{i}" for i in range(len(tensors)))
        return Samples(inputs=tuple(tensors[name] for name in names), unbatched=fixed)


@torch.no_grad()
def rows(chosen: Tensor, graph: GraphModule, ctx: PassContext, title: str) -> Samples:
    """The denoiser's inputs where `chosen`, steps x images, is true, along the images that the graph samples.

    Image i is drawn from noise of its own, whatever else is asked for.
    """
    sampling, fixed = ctx.sampling, ctx.model.unbatched()
    steps = len(chosen)
    kept: list[list[tuple[Tensor, ...]]] = [[] for _ in range(steps)]
    last = _last(chosen)
    with ctx.progress.task(title, int(last.sum())) as task:
        for batch in _batches(chosen, sampling.batch):
            wanted = chosen[:, batch]
            for moment in trajectory(
                graph, ctx.model.sampler(), sampling, seed=ctx.seed, stream="calibration",
                indices=batch.tolist(), device=ctx.device,
            ):  # fmt: skip
                # under guidance the rows without condition follow those with it
                own = wanted[moment.index].repeat(len(moment.inputs[0]) // len(batch))
                if own.any():
                    kept[moment.index].append(
                        tuple(
                            part.cpu() if place in fixed else part.cpu()[own]
                            for place, part in enumerate(moment.inputs)
                        )
                    )
                task.advance(int((last[batch] > moment.index).sum()))
                if not wanted[moment.index + 1 :].any():
                    break
    columns = enumerate(zip(*(inputs for step in kept for inputs in step), strict=True))
    inputs = tuple(parts[0] if place in fixed else torch.cat(parts) for place, parts in columns)
    return Samples(inputs=inputs, unbatched=fixed)


def part_of(whole: Samples, chosen: Tensor, wanted: Tensor, batch: int) -> Samples:
    """Out of the rows of `chosen` those of `wanted`, in the order in which sampling them alone would give them."""
    calls = len(whole) // int(chosen.sum())  # of the denoiser, two under guidance, and a row of each
    place = {row: n for n, row in enumerate(_identities(chosen, batch, calls))}
    return whole.take(torch.tensor([place[row] for row in _identities(wanted, batch, calls)]))


def _identities(chosen: Tensor, batch: int, calls: int) -> list[tuple[int, int, int]]:
    """The step, the call and the image of each row, in order."""
    return [
        (step, call, image)
        for step, wanted in enumerate(chosen)
        for images in _batches(chosen, batch)
        for call in range(calls)
        for image in images[wanted[images]].tolist()
    ]


def _batches(chosen: Tensor, size: int) -> tuple[Tensor, ...]:
    """Images that are sampled together: they are done with after their last row, and these come near each other."""
    last = _last(chosen)
    order = last.argsort(stable=True)
    return torch.split(order[last[order] > 0], size)


def _last(chosen: Tensor) -> Tensor:
    """How many steps each image is sampled for."""
    return (chosen * torch.arange(1, len(chosen) + 1).unsqueeze(1)).amax(0)
