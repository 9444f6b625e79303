"""TFMQ-DM: what depends on the timestep alone is rounded apart from the rest, over its finite set of inputs."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch.fx import GraphModule, Node

from qpass.activations import Samples
from qpass.graph import block_of, depends_on
from qpass.graph.nodes import compute_nodes
from qpass.manager import PassContext, PassResult
from qpass.slots import Slot, read_params, slots, spec_of
from qpass_passes.fitting import choose_rows, several
from qpass_passes.reconstruction.engine import Reconstruction
from qpass_passes.reconstruction.learning import LearningPass, RoundingOptions, told
from qpass_passes.reconstruction.objective import Objective

NAME = "temporal information"


@attrs.frozen(kw_only=True)
class Tfmq(RoundingOptions, LearningPass):
    """Reconstruct the temporal information block, and give its inputs one scale per timestep (2311.16503).

    The block is the time embedding and every layer that depends on the timestep (and the class, in a DiT) but not on
    the image: emb_i = g_i(h(t)). Its loss is Σ_i ||g_i(h(t)) - g^_i(h^(t))||² over the timesteps that are sampled,
    equation 8 (TIAR), none of them held out; its input quantizers hold one scale for each (FSC), but for those that a
    pass before this one has fitted. What comes after, such as `brecq`, leaves its weights alone, as the paper asks;
    `par` alone, which learns all anew, does not. With `every_input` all other inputs get a scale per timestep too, as
    in the released code, but for tensors whose first axis does not count images, such as windows; the notes name these.
    """

    name: ClassVar[str] = "tfmq"
    every_input: bool = attrs.field(
        default=True, metadata={"help": "one scale per timestep for every other static input too"}
    )

    def objective(self) -> Objective:
        return self.chosen(unit="block", held_out=False)

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Refine the specs, fit, and learn the one block from its distinct inputs."""
        nodes = temporal(graph)
        calibration: Samples = ctx.get(ctx.calibration, graph)
        steps = len(set(calibration.t.tolist()))
        refined = [
            slot
            for slot in slots(graph)
            if slot.index >= 0 and not slot.spec.dynamic and read_params(graph, slot) is None
            if slot.node in nodes or self.every_input
        ]
        left = several(graph, refined, calibration, ctx.device)  # before a spec is written: slots hold their own
        refined = [slot for slot in refined if slot.home not in left]
        for slot in refined:
            _per_step(slot, steps)
        self.fit_missing(graph, ctx, self.name, inputs=True)
        notes = {"timesteps": steps, "inputs with a scale per timestep": len(refined), "blocks": {}}
        if left:
            notes["one scale, as a row of theirs is no image"] = sorted(left)
        if any(spec_of(node) for node in nodes):
            block = block_of(graph, nodes, NAME)
            rows = choose_rows(distinct(calibration, _places(graph, block.inputs)), self.rows, ctx.seed)
            made = Reconstruction(
                graph=graph,
                samples=rows,
                objective=self.objective(),
                ctx=ctx,
                key=self.key(graph, ctx),
                only=(block,),
            )
            notes |= {"distinct inputs": len(rows), "blocks": told(made.run())}
        return PassResult(graph=graph, changed=True, notes=notes)


def temporal(graph: GraphModule) -> set[Node]:
    """The nodes that depend on the timestep and not on the image; constants they read are theirs too."""
    from_x, from_t = depends_on(graph, 0), depends_on(graph, 1)
    found = {node for node in compute_nodes(graph.graph) if node in from_t and node not in from_x}
    # what they read depends neither on the image; it need not depend on t, as a class embedding does not
    ahead = list(found)
    while ahead:
        for source in ahead.pop().all_input_nodes:
            if source in compute_nodes(graph.graph) and source not in found:
                found.add(source)
                ahead.append(source)
    return found


def _per_step(slot: Slot, steps: int) -> None:
    spec = spec_of(slot.node)
    assert spec is not None
    inputs = list(spec.inputs)
    inputs[slot.index] = attrs.evolve(slot.spec, time_groups=steps)
    slot.node.meta["qpass"] = attrs.evolve(spec, inputs=tuple(inputs))


def _places(graph: GraphModule, inputs: tuple[Node, ...]) -> list[int]:
    """Which of the model's inputs these are; of the image, the first, such a block reads the size alone."""
    given = list(graph.graph.find_nodes(op="placeholder"))
    return [given.index(node) for node in inputs if node is not given[0]]


def distinct(samples: Samples, places: list[int]) -> Samples:
    """One row for each different combination of the inputs at these places."""
    columns = [
        samples.inputs[place].reshape(len(samples), -1).double()
        for place in places
        if place not in samples.unbatched
    ]
    _, inverse = torch.unique(torch.cat(columns, 1), dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(samples), dtype=torch.long)
    first.scatter_reduce_(0, inverse, torch.arange(len(samples)), "amin")
    return samples.take(first.sort().values)
