"""PAR: reconstruct again, on what the quantized model itself meets while it samples."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.activations import Samples
from qpass.errors import PreconditionError
from qpass.figure import curves
from qpass.manager import PassContext, PassResult
from qpass.sampling import generator
from qpass.slots import slots
from qpass_passes.calibration.from_sampling import FromSampling, part_of, rows
from qpass_passes.fitting import choose_rows
from qpass_passes.peculiar import peculiar
from qpass_passes.reconstruction.engine import Reconstruction
from qpass_passes.reconstruction.learning import JointOptions, LearningPass, told
from qpass_passes.reconstruction.objective import Objective
from qpass_passes.simulate import insert_quantizers, round_weight


@attrs.frozen(kw_only=True)
class Par(JointOptions, LearningPass):
    """TCAQ-DM's progressively aligned reconstruction (Huang et al., 2412.16700), after a first one such as `qdrop`.

    The reconstruction before it saw the inputs that full precision meets along its own sampling. Here the model, as
    quantized so far, samples the calibration images anew; every block learns again from the inputs met on the way;
    and so on, `rounds` times.

    The paper does not say, and these are choices of ours: how many rounds and iterations; that a share `mix` of the
    images stays with full precision; what the blocks are to give (`target`: what full precision gives on the very
    inputs that the quantized model met, or what it gave on its own way from the same noise); that rounding variables
    start again at `restart` from the side they are on, as a settled one has no gradient left; that rounding and step
    sizes learn together, a share `drop` of the values left unrounded as in `qdrop`; and how much each timestep counts
    in a block's loss (`balance`: the recipes let all count alike, in the first reconstruction too).
    """

    name: ClassVar[str] = "par"
    iterations: int = attrs.field(
        default=5_000, validator=v.ge(1), metadata={"help": "at most, for each block in each round"}
    )
    rounds: int = attrs.field(
        default=2, validator=v.ge(1), metadata={"help": "how often the quantized model samples anew"}
    )
    mix: float = attrs.field(
        default=0.5,
        validator=[v.ge(0), v.lt(1)],
        metadata={"help": "share of the images that full precision samples"},
    )
    target: Literal["teacher", "trajectory"] = attrs.field(
        default="teacher",
        validator=v.in_(("teacher", "trajectory")),
        metadata={"help": 'full precision on the same inputs, or, "trajectory", on its own from the same noise'},
    )
    restart: float = attrs.field(
        default=0.15,
        validator=[v.gt(0), v.lt(0.5)],
        metadata={"help": "how far from decided rounding variables start"},
    )

    def objective(self) -> Objective:
        # its `mix` is one of images, not of a block's inputs
        return self.chosen(unit="block", steps=True, activations=True, mix=0.0)

    def requires(self, graph: GraphModule, ctx: PassContext) -> None:
        """The calibration set comes from samplings, so that others can take their place."""
        if not isinstance(ctx.calibration, FromSampling):
            raise PreconditionError(
                f"par: calibration {ctx.calibration.name!r} does not sample, so there is no way of the quantized "
                "model's own to learn from; use one that does, such as uniform-steps"
            )

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Sample and reconstruct, round by round."""
        self.fit_missing(graph, ctx, self.name, inputs=True)
        assert isinstance(ctx.calibration, FromSampling)
        chosen = ctx.calibration.chosen(ctx.reference, ctx)
        notes: dict[str, Any] = {}
        ways: dict[str, dict[float, float]] = {}
        for number in range(1, self.rounds + 1):
            samples, aims, apart = self._rows(chosen, number, graph, ctx)
            if number == 1:
                notes |= {"rows": len(samples), **peculiar(graph, samples, ctx.device)}
            ctx.progress.say(f"  round {number} of {self.rounds}")
            made = Reconstruction(
                graph=graph, samples=samples, aims=aims, objective=self.objective(), ctx=ctx,
                key=f"{self.key(graph, ctx)}-{number}",
            )  # fmt: skip
            ways[f"before round {number}"] = apart
            notes[f"round {number}"] = {"blocks": told(made.run())}
        notes["off full precision's way"] = curves(ways, x="timestep", y="root mean square")
        return PassResult(graph=graph, changed=True, notes=notes)

    def _rows(
        self, chosen: Tensor, number: int, graph: GraphModule, ctx: PassContext
    ) -> tuple[Samples, Samples | None, dict[float, float]]:
        """What the model meets, what full precision is given beside it, and how far apart both are by timestep."""
        images = chosen.shape[1]
        order = torch.randperm(images, generator=generator(ctx.seed, "par", number))
        anew = torch.zeros(images, dtype=torch.bool)
        anew[order[: max(1, round(images * (1 - self.mix)))]] = True
        model = realised(graph)
        ours = rows(chosen & anew, model, ctx, "sample anew")
        del model
        # full precision has sampled all these images before: its rows are the calibration set's
        whole, batch = ctx.get(ctx.calibration, graph), ctx.sampling.batch
        theirs = part_of(whole, chosen, chosen & anew, batch)
        apart = distances(ours, theirs)
        if not anew.all():
            both = part_of(whole, chosen, chosen & ~anew, batch)
            ours, theirs = joined(ours, both), joined(theirs, both)
        seed = ctx.seed
        samples = choose_rows(ours, self.rows, seed)
        return samples, choose_rows(theirs, self.rows, seed) if self.target == "trajectory" else None, apart


@torch.no_grad()
def realised(graph: GraphModule) -> GraphModule:
    """A copy that rounds its weights and inputs, as `simulate` would make it of a graph that is fitted."""
    made = copy.deepcopy(graph)
    for slot in list(slots(made)):
        if slot.index < 0:
            round_weight(made, slot)
    insert_quantizers(made)
    return made


def joined(first: Samples, second: Samples) -> Samples:
    """The rows of both."""
    pairs = enumerate(zip(first.inputs, second.inputs, strict=True))
    inputs = (a if place in first.unbatched else torch.cat([a, b]) for place, (a, b) in pairs)
    return Samples(inputs=tuple(inputs), unbatched=first.unbatched)


def distances(ours: Samples, theirs: Samples) -> dict[float, float]:
    """Root mean square of the difference of two ways from the same noise, by timestep, first to last."""
    apart = (ours.inputs[0].double() - theirs.inputs[0].double()).square().flatten(1).mean(1)
    times = dict.fromkeys(ours.t.tolist())
    return {t: float(f"{float(apart[ours.t == t].mean().sqrt()):.4g}") for t in times}
