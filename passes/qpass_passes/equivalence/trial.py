"""What a factor does to the output of the layers that take it: tried on calibration rows, nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from qpass.activations import record
from qpass.kernels import reference
from qpass.manager import PassContext
from qpass.quantizer import QParams, Quantizer, fake_quantize
from qpass.slots import Slot, layer, slots
from qpass.timegroups import edges_for
from qpass_passes.equivalence.ties import Tie
from qpass_passes.fitting import fit, grouped, refuse_several, settled, spread_rows


@attrs.frozen(kw_only=True)
class Trial:
    """Rounds weights and inputs as their specs say, with scales fitted as they would be, on `rows` rows."""

    weight: Quantizer
    input: Quantizer
    rows: int

    @torch.no_grad()
    def errors(
        self, graph: GraphModule, ctx: PassContext, found: Sequence[Tie], factors: Sequence[Sequence[Tensor]]
    ) -> list[list[float]]:
        """For each tie and each of its factors, the squared error of the tied layers' outputs, summed over all."""
        calibration = ctx.get(ctx.calibration, graph)
        inputs = {slot.node: slot for slot in slots(graph) if slot.index == 0}
        given = [inputs[node] for tie in found for node in tie.calls]
        refuse_several(graph, given, calibration, ctx.device)
        edges_of = {slot.spec: edges_for(slot.spec, calibration.t) for slot in given}
        by_range = [edges_of[slot.spec] for slot in given if slot.spec.time_split == "range"]
        samples = spread_rows(calibration, self.rows, ctx.seed, by_range)  # a range for each timestep
        weights = {slot.home: slot for slot in slots(graph) if slot.index < 0}
        totals = [[0.0] * len(tried) for tried in factors]
        wanted = list(dict.fromkeys(tensor for tie in found for tensor in tie.tensors))
        with ctx.progress.task("try factors", len(found)) as task:
            for values in record(
                graph, wanted, samples, device=ctx.device, budget=ctx.memory_budget // 4,
                progress=ctx.progress, title="record inputs",
            ):  # fmt: skip
                for place, tie in enumerate(found):
                    for node in tie.calls:
                        source = node.args[0]
                        if source not in values:
                            continue
                        slot = inputs[node]
                        kernel = weights[f"{node.target}.weight_q"]
                        x = torch.cat(values[source]).to(ctx.device)  # type: ignore[index]
                        module = layer(graph, node)
                        assert module is not None
                        for n, factor in enumerate(factors[place]):
                            totals[place][n] += self._error(
                                module, x, samples.t, slot, kernel, factor, edges_of[slot.spec]
                            )
                    if tie.tensors[-1] in values:
                        task.advance()
        return totals

    def _error(
        self, module: nn.Module, x: Tensor, t: Tensor, given: Slot, kernel: Slot, factor: Tensor,
        edges: Tensor | None,
    ) -> float:  # fmt: skip
        """||layer(x) - rounded layer(rounded (x / r))||² where the weight is times r."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        exact, factor = module(x), factor.to(x.device)
        scaled = weight.float() * factor.reshape([1, -1] + [1] * (weight.dim() - 2))
        values = reference.arrange(scaled, kernel.layout, kernel.spec.granularity, kernel.spec.group_size)
        only = torch.zeros(1, dtype=torch.long, device=x.device)
        params = fit(self.weight, kernel, partial(list, [(values, only)]))
        rounded = fake_quantize(scaled, kernel.spec, params.tensors, kernel.layout)
        moved = reference.rescale(x, given.layout, factor.reciprocal())
        narrow = self._rounded(moved, t, given, settled(edges, given, [moved], t))
        found = functional_call(module, {"weight": rounded.to(weight.dtype)}, (narrow,))
        return float((found.double() - exact.double()).square().sum())

    def _rounded(self, x: Tensor, t: Tensor, slot: Slot, edges: Tensor | None) -> Tensor:
        if slot.spec.dynamic:
            return fake_quantize(x, slot.spec, {}, slot.layout)
        params: QParams = fit(self.input, slot, partial(grouped, [x], t, edges, slot))
        group = None if edges is None else reference.time_group(t, edges).to(x.device)
        return fake_quantize(x, slot.spec, params.tensors, slot.layout, group)
