"""A block whose rounding can learn: soft weights in its layers, quantizers with a gradient before its inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import checkpoint

from qpass.graph import Block, block_module
from qpass.kernels import reference
from qpass.quantizer import QParams, dequantize, quantize
from qpass.slots import Slot, find, layer, read_params, slots
from qpass_passes.reconstruction.gradients import random_mask, rounded_input, soft_weight, through
from qpass_passes.reconstruction.objective import Objective
from qpass_passes.soft_rounding import again, base, ends, harden, rectified_sigmoid, soft_quantize, start

LARGE = 1 << 20  # weights above which memory is saved at the cost of some time


class SoftLayer(nn.Module):
    """A linear layer or convolution whose weight is rounded softly, to codes, or not at all."""

    def __init__(
        self, slot: Slot, inner: nn.Module, params: QParams, codes: Tensor | None, learns: bool, restart: float
    ) -> None:
        super().__init__()
        self.slot, self.inner = slot, inner
        weight = inner.weight
        assert isinstance(weight, Tensor)
        self.original = weight.detach().float()
        self.params = params
        # only evenly spaced levels have an up and a down; codes that are there were learned before
        self.learns = learns and params.kind == "affine" and (codes is None or restart > 0)
        self.codes = quantize(weight, slot.spec, params.tensors, slot.layout) if codes is None else codes
        self.soft, self.active = False, True
        if params.kind == "affine":
            self.scale = self._spread("scale")
            self.zero = self._spread("zero")
            bits = slot.spec.bits
            each = torch.as_tensor(bits, device=weight.device)
            shaped = bits if isinstance(bits, int) else each.reshape([-1] + [1] * (weight.dim() - 1))
            self.low, self.high = reference.levels(shaped, slot.spec.symmetric)
        if self.learns:
            given = (self.original, self.scale)
            self.base: Tensor | None = None  # what learned codes are up or down from, where floor(w / s) is not it
            if codes is None:
                self.v = nn.Parameter(start(*given))
            else:
                self.base = base(*given, self.zero, codes, self.low, self.high)
                self.v = nn.Parameter(again(*given, self.zero, codes, restart, self.base))
            self.ends: tuple[Tensor, Tensor] | None = None
        self.fixed = self._decoded()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional_call(self.inner, {"weight": self.weight().to(x.dtype)}, (x,))
        return y

    def weight(self) -> Tensor:
        """As rounded at present."""
        if not self.active:
            return self.original
        if self.soft and self.learns:
            if self.v.numel() < LARGE:
                if self.ends is None:
                    self.ends = ends(self.original, self.scale, self.zero, self.low, self.high, self.base)
                return soft_weight(self.v, *self.ends)
            given = (self.original, self.v, self.scale, self.zero, self.low, self.high, self.base)
            # what its backward pass needs is made again there
            made: Tensor = checkpoint(soft_quantize, *given, use_reentrant=False, preserve_rng_state=False)
            return made
        return self.fixed

    @torch.no_grad()
    def settle(self) -> None:
        """Round for good, where it learned."""
        if self.learns:
            found = harden(self.original, self.v, self.scale, self.zero, self.low, self.high, self.base)
            self.give_back(found.to(self.codes.dtype))

    def give_back(self, codes: Tensor) -> None:
        """Take other codes, or those that were there before."""
        self.codes = codes
        self.fixed = self._decoded()

    def undecided(self) -> int:
        """How many rounding variables are neither up nor down."""
        h = rectified_sigmoid(self.v.detach())
        return int(((h > 0.01) & (h < 0.99)).sum())

    def _decoded(self) -> Tensor:
        return dequantize(self.codes, self.slot.spec, self.params.tensors, self.slot.layout)

    def _spread(self, part: str) -> Tensor:
        spec = self.slot.spec
        return reference.spread(
            self.params.tensors[part], self.original, self.slot.layout, spec.granularity, spec.group_size
        )


class SoftInput(nn.Module):
    """Rounds a layer's input, with a gradient to the input and to the step size."""

    def __init__(self, homes: list[Slot], params: QParams | None, learns: bool) -> None:
        super().__init__()
        self.slots, self.params, self.slot = homes, params, homes[0]
        self.learns = learns and params is not None and params.kind == "affine"
        self.active, self.drop = False, 0.0
        if params is not None:
            self.scale = nn.Parameter(params.tensors["scale"].clone(), requires_grad=self.learns)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.active:
            return x
        mask = random_mask(x, self.drop) if self.drop and self.training else None
        spec, layout = self.slot.spec, self.slot.layout
        grain = (layout, spec.granularity, spec.group_size)
        if self.params is None:
            rounded = reference.fake_quantize_dynamic(x.detach(), spec.widest, spec.symmetric, *grain)
            return through(x, rounded, mask)
        tensors = self.params.tensors
        group = reference.time_group(t, tensors["edges"]) if "edges" in tensors else None
        if self.params.kind == "codebook":
            rounded = reference.fake_quantize_codebook(
                x.detach(), self.scale.detach(), tensors["thresholds"], tensors["table"], *grain, group
            )
            return through(x, rounded, mask)
        scale = self.scale if group is None else self.scale[group]
        zero = None
        if not spec.symmetric:
            zero = reference.spread(tensors["zero"] if group is None else tensors["zero"][group], x, *grain)
        low, high = (int(end) for end in reference.levels(spec.widest, spec.symmetric))
        return rounded_input(x, reference.spread(scale, x, *grain), zero, low, high, mask)

    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters as they are now."""
        assert self.params is not None
        return {**self.params.tensors, "scale": self.scale.detach().clone()}


class SoftBlock(nn.Module):
    """A block called with the rows' timesteps and the tensors of `block.inputs`; gives those of `block.outputs`.

    Codes that are there stay, unless they are to learn again from a `restart` and their home is not in `settled`.
    """

    def __init__(
        self,
        graph: GraphModule,
        block: Block,
        *,
        weights: bool,
        steps: bool,
        restart: float = 0.0,
        settled: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.block = block
        module = block_module(graph, block)
        self.layers: dict[str, SoftLayer] = {}
        self.inputs: list[SoftInput] = []
        made: list[tuple[Node, Slot, SoftInput]] = []
        first = next(iter(module.graph.nodes))
        with module.graph.inserting_before(first):
            t = module.graph.placeholder("timesteps")
        for slot in list(slots(module)):
            params = read_params(graph, slot)
            if slot.index < 0:
                assert params is not None, f"{slot.home} has not been fitted"
                inner = layer(module, slot.node)
                assert inner is not None
                codes = find(graph, f"{slot.home}.codes")
                anew = 0.0 if slot.home in settled else restart
                self.layers[slot.home] = SoftLayer(slot, inner, params, codes, weights, anew)
            else:
                found = next(
                    (s for n, other, s in made if n is slot.source and _alike(other, slot, s, params)), None
                )
                if found is None:
                    found = SoftInput([slot], params, steps)
                    self.inputs.append(found)
                    module.add_submodule(f"soft_inputs.i{len(self.inputs)}", found)
                    made.append((slot.source, slot, found))
                else:
                    found.slots.append(slot)
                name = f"soft_inputs.i{self.inputs.index(found) + 1}"
                with module.graph.inserting_before(slot.node):
                    rounded = module.graph.call_module(name, (slot.source, t))
                slot.node.update_arg(slot.index, rounded)
        self._soften(module)
        module.graph.lint()
        module.recompile()
        self.module = module

    def _soften(self, module: GraphModule) -> None:
        names = {home.removesuffix(".weight_q"): n for n, home in enumerate(self.layers)}
        for soft, n in zip(self.layers.values(), names.values(), strict=True):
            module.add_submodule(f"soft_layers.l{n}", soft)
        for node in module.graph.nodes:
            if node.op == "call_module" and str(node.target) in names:
                node.target = f"soft_layers.l{names[str(node.target)]}"

    def forward(self, t: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.module(t, *inputs)
        return found

    def set(self, *, soft: bool, activations: bool, drop: float) -> None:
        """Whether weights are soft or hard, and how inputs are rounded."""
        for one in self.layers.values():
            one.soft = soft
        for quantizer in self.inputs:
            quantizer.active, quantizer.drop = activations, drop

    def roundings(self) -> list[SoftLayer]:
        """The layers whose rounding learns."""
        return [one for one in self.layers.values() if one.learns]

    def learned_steps(self) -> list[SoftInput]:
        """The quantizers whose step size learns."""
        return [one for one in self.inputs if one.learns]


def softened(graph: GraphModule, block: Block, objective: Objective, settled: Collection[str] = ()) -> SoftBlock:
    """The block, with what the objective is to learn, but for the weights that are `settled`."""
    return SoftBlock(
        graph, block, weights=objective.weights, steps=objective.steps, restart=objective.restart, settled=settled
    )


def _alike(other: Slot, slot: Slot, made: SoftInput, params: QParams | None) -> bool:
    """Whether two slots on one tensor are rounded by the same quantizer, as q, k and v are."""
    if str(other.spec) != str(slot.spec) or other.layout != slot.layout:
        return False
    theirs = made.params
    if theirs is None or params is None:
        return theirs is params
    return theirs.tensors.keys() == params.tensors.keys() and all(
        torch.equal(tensor, params.tensors[part]) for part, tensor in theirs.tensors.items()
    )
