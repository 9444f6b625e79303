"""Move each layer's bias by the mean error that rounding puts on its output."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor, nn
from torch.fx import GraphModule

from qpass.graph import block_module
from qpass.manager import Pass, PassContext, PassResult
from qpass.slots import layer, slots
from qpass_passes.fitting import FittingOptions, choose_rows
from qpass_passes.peculiar import peculiar
from qpass_passes.reconstruction.chain import chain, cut_into
from qpass_passes.reconstruction.rows import scratch_pool
from qpass_passes.reconstruction.soft import SoftBlock
from qpass_passes.reconstruction.streams import Streams


@attrs.frozen(kw_only=True)
class BiasCorrection(FittingOptions, Pass):
    """Add to each bias the mean over calibration rows of what the layer lacks (Nagel et al., 1906.04721, section 4.2).

    b_c += E[W x]_c - E[W~ x~]_c for each output channel c, layer after layer: x~ are the inputs that the layers
    before it give, already rounded and corrected, so that shifts do not add up. Samplers add up what is common to all
    steps: a small mean error of the noise becomes a shift of the image's colour. It comes right before `simulate`,
    as the graph is no longer the original in full precision. Layers that are called more than once are left alone.
    """

    name: ClassVar[str] = "bias-correction"
    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    provides: ClassVar[frozenset[str]] = frozenset({"corrected"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"corrected", "realised"})

    rows: int = attrs.field(
        default=1024, validator=v.ge(1), metadata={"help": "calibration rows to average over; all, where fewer"}
    )

    @torch.no_grad()
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Roll both models forward, layer by layer; biases are written in the end."""
        self.fit_missing(graph, ctx, self.name, inputs=True)
        samples = choose_rows(ctx.get(ctx.calibration, graph), self.rows, ctx.seed)
        odd = peculiar(graph, samples, ctx.device)
        cut = chain(graph, cut_into(graph, "layer"), samples, ctx.device, budget=ctx.memory_budget)
        rounded = {slot.node for slot in slots(graph)}
        calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
        moved: dict[str, Tensor] = {}
        with scratch_pool(ctx) as pool, ctx.progress.task("correct biases", len(cut.blocks)) as task:
            streams = Streams(graph, cut, samples, pool, ctx.device)
            for block, gone in zip(cut.blocks, cut.dies, strict=True):
                last = block.nodes[-1]
                soft = SoftBlock(graph, block, weights=False, steps=False).eval().to(ctx.device)
                soft.set(soft=False, activations=True, drop=0.0)
                streams.advance_full(block, block_module(graph, block))
                streams.advance_rounded(block, soft)
                module = layer(graph, last)
                if (
                    module is not None
                    and last in rounded
                    and calls[str(last.target)] == 1
                    and last in block.outputs
                ):
                    moved[str(last.target)] = streams.centre(last, 1 if not isinstance(module, nn.Linear) else -1)
                streams.drop(gone)
                task.advance()
        for name, shift in moved.items():
            module = graph.get_submodule(name)
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor)
            assert bias is None or isinstance(bias, Tensor)
            new = shift if bias is None else bias.float() + shift
            module.bias = nn.Parameter(new.to(weight.dtype), requires_grad=False)
        largest = max(((float(shift.abs().max()), name) for name, shift in moved.items()), default=(0.0, ""))
        notes = {"layers": len(moved), "largest shift": {largest[1]: float(f"{largest[0]:.4g}")}, **odd}
        return PassResult(graph=graph, changed=bool(moved), notes=notes)
