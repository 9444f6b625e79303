"""Q-Diffusion's calibration set: the denoiser's inputs at uniformly spaced sampling steps (2302.04304, section 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch.fx import GraphModule

from qpass.activations import Samples
from qpass.analysis import Analysis, Tensors
from qpass.errors import ModelError
from qpass.manager import PassContext
from qpass.sampling import trajectory


@attrs.frozen(kw_only=True)
class UniformSteps(Analysis[Samples]):
    """Sample `samples` images with the full-precision model and keep the inputs at `steps` of their steps.

    Rows are ordered by step, then by image. The kept steps are spread evenly, the first one included. The noise
    is a stream of its own, so evaluation never sees it. Under guidance both halves are kept.
    """

    name: ClassVar[str] = "uniform-steps"
    of: ClassVar[Literal["reference", "graph"]] = "reference"
    stored: ClassVar[bool] = True
    samples: int = attrs.field(default=128, validator=v.ge(1), metadata={"help": "images sampled to calibrate on"})
    steps: int = attrs.field(
        default=20, validator=v.ge(1), metadata={"help": "sampling steps kept; all of them where there are fewer"}
    )

    def compute(self, graph: GraphModule, ctx: PassContext) -> Samples:
        """Sample, and keep what the denoiser was given."""
        if reason := ctx.model.cannot_sample():
            raise ModelError(f"calibration 'uniform-steps' samples from the model, but {reason}")
        sampling, kept = ctx.sampling, min(self.steps, ctx.sampling.steps)
        wanted = {i * sampling.steps // kept for i in range(kept)}
        rows: dict[int, list[tuple[torch.Tensor, ...]]] = {i: [] for i in sorted(wanted)}
        with ctx.progress.task("calibration set", self.samples * sampling.steps) as task, torch.no_grad():
            for start in range(0, self.samples, sampling.batch):
                indices = range(start, min(start + sampling.batch, self.samples))
                for moment in trajectory(
                    graph, ctx.model.sampler(), sampling, seed=ctx.seed, stream="calibration",
                    indices=indices, device=ctx.device,
                ):  # fmt: skip
                    if moment.index in rows:
                        rows[moment.index].append(tuple(part.cpu() for part in moment.inputs))
                    task.advance(len(indices))
        flat = [inputs for step in rows.values() for inputs in step]
        fixed = ctx.model.unbatched()
        columns = enumerate(zip(*flat, strict=True))
        inputs = tuple(parts[0] if place in fixed else torch.cat(parts) for place, parts in columns)
        return Samples(inputs=inputs, unbatched=fixed)

    def dump(self, value: Samples) -> Tensors:
        """The rows, numbered by input."""
        return {f"{'fixed' if i in value.unbatched else 'input'}{i}": part for i, part in enumerate(value.inputs)}

    def restore(self, tensors: Tensors) -> Samples:
        """The rows again."""
        fixed = tuple(i for i in range(len(tensors)) if f"fixed{i}" in tensors)
        names = (f"{'fixed' if i in fixed else 'input'}{i}" for i in range(len(tensors)))
        return Samples(inputs=tuple(tensors[name] for name in names), unbatched=fixed)
