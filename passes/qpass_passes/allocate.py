"""Allocate: more bits for the few quantizers that do most harm, within a budget of bit operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.figure import bars
from qpass.manager import Pass, PassContext, PassResult
from qpass.products import count
from qpass.quantizer import Quantizer
from qpass.slots import MATMULS, Slot, find, read_params, slots, spec_of
from qpass.spec import NodeSpec, QuantSpec
from qpass_passes.alone import errors_alone
from qpass_passes.fitting import choose_rows
from qpass_passes.quantizers.mse import Mse

Homes = tuple[str, ...]
LEAST = 1e-4  # of all errors: what is less than this is chance, and not worth a line in the report
SHOWN = 40  # of the quantizers, in the report's picture


@attrs.frozen(kw_only=True)
class Allocate(Pass):
    """Raise the bits of the weights and inputs whose rounding harms the output most for the bit operations it saves.

    Every quantizer is first tried alone: its harm is the squared error of the model's output over the output's own
    square. That falls fourfold with each bit, as the error of even rounding does. Then, one after the other, the
    quantizer with the greatest fall for each bit operation (BOP) it adds is raised to `bits`, for as long as there is
    one that `budget`, a share of the model's BOPs, has room for.

    Ours, in the line of HAWQ's and MixDQ's (2405.17873) allocation by sensitivity; errors are taken to add up. The
    bits that `assign` gave are the least: nothing is lowered, and the cost column of a report says what was spent.
    What is fitted already, or is not evenly spaced, stays.
    """

    name: ClassVar[str] = "allocate"
    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"corrected", "realised"})

    budget: float = attrs.field(
        default=0.05, validator=v.gt(0), metadata={"help": "bit operations that may be added, as a share"}
    )
    bits: int = attrs.field(
        default=8, validator=[v.ge(3), v.le(8)], metadata={"help": "what is raised gets these"}
    )
    weight: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how scales of weights are fitted for the trial"}
    )
    input: Quantizer = attrs.field(factory=Mse, metadata={"help": "how scales of inputs are fitted for the trial"})
    rows: int = attrs.field(
        default=64, validator=v.ge(1), metadata={"help": "calibration rows whose output is compared"}
    )
    fit_rows: int = attrs.field(
        default=256, validator=v.ge(1), metadata={"help": "calibration rows the inputs are fitted on"}
    )

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Try each quantizer, then spend the budget."""
        free = {slot.home: slot for slot in slots(graph) if self._free(graph, slot)}
        if not free:
            why = f"no quantizer is evenly spaced, not fitted yet and below {self.bits} bits"
            return PassResult(graph=graph, changed=False, notes={"nothing to raise": why})
        samples = choose_rows(ctx.get(ctx.calibration, graph), self.rows, ctx.seed)
        found = errors_alone(graph, samples, ctx, weight=self.weight, input=self.input, fit_rows=self.fit_rows)
        every = sum(found.values())
        errors = {
            homes: error
            for homes, error in found.items()
            if error > LEAST * every and all(home in free for home in homes)
        }
        bill = Bill(graph, tuple(x.to(ctx.device) for x in ctx.model.workload(1)))
        before, raised = bill.total(), list[Homes]()
        while best := self._best(errors, bill, free, before * (1 + self.budget)):
            bill.bits |= dict.fromkeys(best, self.bits)
            raised.append(best)
            errors = {homes: error for homes, error in errors.items() if homes != best}
        for homes in raised:
            for home in homes:
                give(graph, free[home], self.bits)
        left = every - sum(found[homes] for homes in raised)
        most = sorted(found, key=lambda homes: -found[homes])[:SHOWN] if every else []
        shares: dict[str, dict[str, float]] = {"raised": {}, "as they were": {}}
        for homes in most:
            shares["raised" if homes in raised else "as they were"][_called(homes)] = found[homes] / every
        return PassResult(
            graph=graph,
            changed=bool(raised),
            notes={
                "bit operations": {"before": round(before), "after": round(bill.total())},
                "raised": {
                    _called(homes): {
                        "bits": [free[homes[0]].spec.widest, self.bits],
                        "share of all errors": round(found[homes] / every, 4),
                    }
                    for homes in raised
                },
                "errors that are left": round(left / every, 4) if every else 0.0,
                "share of all errors, each quantizer alone": bars(shares),
            },
        )

    def _free(self, graph: GraphModule, slot: Slot) -> bool:
        even = slot.spec.kind == "affine" and isinstance(slot.spec.bits, int) and slot.spec.bits < self.bits
        fitted = read_params(graph, slot) is not None or find(graph, f"{slot.home}.codes") is not None
        return even and not fitted

    def _best(
        self, errors: Mapping[Homes, float], bill: Bill, free: Mapping[str, Slot], limit: float
    ) -> Homes | None:
        """What lowers the error most for each bit operation, of what there is room for."""
        now, worth = bill.total(), dict[Homes, float]()
        for homes, error in errors.items():
            then = bill.total(dict.fromkeys(homes, self.bits))
            if then <= limit:
                gain = error * (1 - 4.0 ** (free[homes[0]].spec.widest - self.bits))
                worth[homes] = gain / max(then - now, 1.0)
        return max(worth, key=worth.__getitem__, default=None)


def _called(homes: Homes) -> str:
    return " = ".join(homes)


class Bill:
    """The bit operations of one denoise call, for any bits of its quantizers."""

    def __init__(self, graph: GraphModule, inputs: tuple[Tensor, ...]) -> None:
        self.products = count(graph, inputs)
        self.bits: dict[str, float] = {}
        self.factors: dict[str, dict[int, str]] = {}  # of a node, by origin: which factor is which slot's
        weights = {slot.home.removesuffix(".weight_q"): slot.home for slot in slots(graph) if slot.index < 0}
        for slot in slots(graph):
            origin = str(slot.node.meta["origin"])
            at = self.factors.setdefault(origin, {})
            if slot.index >= 0:
                at[slot.index + (slot.node.target not in MATMULS)] = slot.home
            if str(slot.node.target) in weights:
                at[0] = weights[str(slot.node.target)]

    def total(self, other: Mapping[str, float] | None = None) -> float:
        """Of all products, where the slots of these homes have other bits."""
        bits = {**self.bits, **(other or {})}
        found = 0.0
        for origin, parts in self.products.items():
            at = self.factors.get(origin, {})
            for part in parts:
                left = bits.get(at.get(0, ""), part.left)
                found += part.macs * left * bits.get(at.get(1, ""), part.right)
        return found


def give(graph: GraphModule, slot: Slot, bits: int) -> None:
    """Write the slot's new bits at every node that has it."""
    for node in graph.graph.nodes:
        if (spec := spec_of(node)) is not None and _has(node, slot):
            node.meta["qpass"] = _with_bits(spec, slot.index, bits)


def _has(node: Node, slot: Slot) -> bool:
    return node is slot.node or (slot.index < 0 and node.op == "call_module" and node.target == slot.node.target)


def _with_bits(spec: NodeSpec, index: int, bits: int) -> NodeSpec:
    def wider(one: QuantSpec | None) -> QuantSpec | None:
        return None if one is None else attrs.evolve(one, bits=bits)

    if index < 0:
        return attrs.evolve(spec, weight=wider(spec.weight))
    inputs = tuple(wider(one) if place == index else one for place, one in enumerate(spec.inputs))
    return attrs.evolve(spec, inputs=inputs)
