"""EDA-DM's calibration set, TDAC: more rows at dense and at diverse timesteps (2401.04585, section 4.1)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples, run_recording
from qpass.errors import PreconditionError, did_you_mean
from qpass.graph import blocks
from qpass.manager import PassContext
from qpass.sampling import generator
from qpass_passes.calibration.from_sampling import FromSampling, rows


@attrs.frozen(kw_only=True)
class DensityDiversity(FromSampling):
    """Keep `samples` rows, shared out among the steps by how dense and how diverse their features are.

    Step i weighs D_i / sum D + diversity * V_i / sum V. D_i is how many other steps have features within the squared
    distance `radius`, V_i the sum over all steps of 1 - cosine. The release has 1,024 samples, a radius of 3.0 on
    CIFAR-10 and 0.3 on latent models, and a diversity weight of 1.2 (CIFAR-10, ImageNet) or 1.0 (LSUN).

    The features are those of the middle block's attention, as in the release; where a model has no block so named, of
    the block in the middle of the chain. Unknown, and so our choices: distances are means over `probe` images, of
    features that one image has at two steps, and over elements; both scores are shared by their sum; a step's rows
    are images drawn at random. Under guidance both halves are looked at, and both are kept.
    """

    name: ClassVar[str] = "density-diversity"
    samples: int = attrs.field(
        default=1024, validator=v.ge(1), metadata={"help": "rows kept, of all steps together, each of one image"}
    )
    radius: float = attrs.field(
        default=3.0,
        validator=v.gt(0.0),
        metadata={"help": "the squared distance within which steps are neighbours"},
    )
    diversity: float = attrs.field(
        default=1.2, validator=v.ge(0.0), metadata={"help": "weight of diversity, beside 1 for density"}
    )
    probe: int = attrs.field(
        default=8, validator=v.ge(1), metadata={"help": "images whose features are compared between steps"}
    )
    feature: str = attrs.field(
        default="", metadata={"help": "glob of the node whose output is compared; empty is the middle block"}
    )

    def choose(self, times: Tensor, graph: GraphModule, ctx: PassContext) -> Tensor:
        """More images at steps that weigh more; at least one image where there are as many rows as steps or more."""
        node = feature_node(graph, self.feature)
        every = torch.ones(len(times), self.probe, dtype=torch.bool)
        distance, cosine = compared(graph, node, rows(every, graph, ctx, "calibration features"), len(times), ctx)
        counts = share_out(self.samples, step_weights(distance, cosine, self.radius, self.diversity))
        images = int(counts.max())
        chosen = torch.zeros(len(times), images, dtype=torch.bool)
        for step, count in enumerate(counts.tolist()):
            order = torch.randperm(images, generator=generator(ctx.seed, "calibration-images", step))
            chosen[step, order[:count]] = True
        return chosen


def feature_node(graph: GraphModule, glob: str) -> Node:
    """The node that a glob names, the last if several; or what leaves the middle block's last attention."""
    if glob:
        named: dict[str, Node] = {str(n.meta["origin"]): n for n in graph.graph.nodes if "origin" in n.meta}
        found = [node for name, node in named.items() if fnmatchcase(name, glob)]
        if not found:
            raise PreconditionError(
                f"calibration 'density-diversity': the glob {glob!r} of `feature` matches no node, "
                f"{did_you_mean(glob, named)}"
            )
        return found[-1]
    chain = [block for block in blocks(graph) if block.outputs]
    middle = [block for block in chain if block.name.startswith("mid")] or [chain[len(chain) // 2]]
    attention = [block for block in middle if block.kind in ("attention", "transformer")]
    return (attention or middle)[-1].outputs[-1]


@torch.no_grad()
def compared(
    graph: GraphModule, node: Node, samples: Samples, steps: int, ctx: PassContext
) -> tuple[Tensor, Tensor]:
    """Mean squared distance and mean cosine between the features of each two steps, both steps x steps."""
    per = len(samples) // steps  # rows are ordered by step; row i of each is of one image, and one half
    distance = cosine = torch.zeros(steps, steps, dtype=torch.float64)
    for row in range(per):
        own = samples.take(torch.arange(steps) * per + row)
        parts = [
            run_recording(graph, [node], inputs)[node].flatten(1).double().cpu()
            for inputs in own.batches(ctx.sampling.batch, ctx.device)
        ]
        features = torch.cat(parts)
        distance = distance + torch.cdist(features, features).square() / features.shape[1]
        unit = torch.nn.functional.normalize(features, dim=1)
        cosine = cosine + unit @ unit.T
    return distance / per, cosine / per


def step_weights(distance: Tensor, cosine: Tensor, radius: float, diversity: float) -> Tensor:
    """Each step's weight (steps,), from distances and cosines between steps.

    >>> near, alike = torch.tensor([[0.0, 1, 9], [1, 0, 9], [9, 9, 0]]), torch.ones(3, 3)
    >>> step_weights(near, alike, 3.0, 0.0)
    tensor([0.5000, 0.5000, 0.0000])
    """
    dense = (distance <= radius).to(distance.dtype).sum(1) - 1  # itself apart
    diverse = (1 - cosine).clamp(min=0).sum(1)
    return _shares(dense) + diversity * _shares(diverse)


def _shares(score: Tensor) -> Tensor:
    total = score.sum()
    return score / total if total > 1e-9 else torch.full_like(score, 1 / len(score))


def share_out(count: int, weights: Tensor) -> Tensor:
    """So many rows by weight: whole numbers that add up, one at least for each step where there are enough.

    >>> share_out(10, torch.tensor([3.0, 2.0, 0.0]))
    tensor([5, 4, 1])
    """
    least = 1 if count >= len(weights) else 0
    wanted = weights / weights.sum() * (count - least * len(weights))
    counts = wanted.floor()
    left = count - least * len(weights) - int(counts.sum())
    first = (counts - wanted).argsort(stable=True)[:left]  # largest remainders
    counts[first] += 1
    return counts.long() + least
