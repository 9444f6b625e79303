"""Carry quantization out in floating point: fit what is missing, then round weights and inputs in the graph."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qpass.errors import PreconditionError
from qpass.graph.tensors import put
from qpass.kernels import reference
from qpass.manager import Pass, PassContext, PassResult
from qpass.quantizer import QParams, Quantizer, dequantize, quantize
from qpass.slots import Slot, find, layer, read_params, slots, spec_of, weight_of
from qpass.timegroups import finest, mapping
from qpass_passes.fitting import HELP_ROWS, fit_inputs, fit_weights
from qpass_passes.quantizers.mse import Mse


def _quantizer(instance: object, attribute: attrs.Attribute[Quantizer], value: object) -> None:
    if not isinstance(value, Quantizer):
        raise TypeError(f"{attribute.name} must be a quantizer such as Mse(), not {value!r}")


@attrs.frozen(kw_only=True)
class Simulate(Pass):
    """Round every weight to its codes and put a fake-quantizer before every quantized input.

    Parameters already fitted by earlier passes are used as they are; the rest are fitted here: weights on
    themselves, inputs on `rows` rows of the calibration set, spread over its timesteps. The codes are
    what the artifact stores; arithmetic stays in floating point, and the report says "simulated".
    """

    name: ClassVar[str] = "simulate"
    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    provides: ClassVar[frozenset[str]] = frozenset({"realised"})
    weight: Quantizer = attrs.field(
        factory=Mse,
        validator=_quantizer,
        metadata={"help": 'how scales of weights are fitted, like "absmax" or {use = "mse", norm = 2}'},
    )
    input: Quantizer = attrs.field(
        factory=Mse,
        validator=_quantizer,
        metadata={"help": 'how scales of inputs are fitted, like "percentile"'},
    )
    rows: int = attrs.field(default=256, validator=v.ge(1), metadata={"help": HELP_ROWS})

    @torch.no_grad()
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Fit, then realise."""
        if not any(True for _ in slots(graph)):
            raise PreconditionError("simulate: no node has a spec, so there is nothing to carry out; see 'assign'")
        fitted = fit_weights(graph, self.weight, ctx) + fit_inputs(graph, self.input, self.rows, ctx)
        weights = sum(round_weight(graph, slot) for slot in slots(graph) if slot.index < 0)
        inputs = insert_quantizers(graph)
        for node in graph.graph.nodes:
            if (spec := spec_of(node)) is not None:
                node.meta["qpass"] = attrs.evolve(spec, execution="simulated")
        return PassResult(
            graph=graph,
            changed=True,
            notes={"execution": "simulated", "weights": weights, "quantizers": inputs, "fitted here": fitted},
        )


def round_weight(graph: GraphModule, slot: Slot) -> int:
    """Replace a weight by what its codes stand for, and keep the codes."""
    module, params = layer(graph, slot.node), read_params(graph, slot)
    assert module is not None
    assert params is not None
    weight = weight_of(graph, slot)
    codes = find(graph, f"{slot.home}.codes")
    if codes is None:
        codes = quantize(weight, slot.spec, params.tensors, slot.layout)
        put(graph, f"{slot.home}.codes", codes)
    rounded = dequantize(codes, slot.spec, params.tensors, slot.layout)
    module.weight = nn.Parameter(rounded.to(weight.dtype), requires_grad=False)
    return 1


def insert_quantizers(graph: GraphModule) -> int:
    """Put fake-quantizers before quantized inputs; equal ones on one tensor are one node. Returns how many."""
    nodes = graph.graph
    found = [(slot, read_params(graph, slot)) for slot in slots(graph) if slot.index >= 0]
    time = _TimeNodes(graph, [p.tensors["edges"] for _, p in found if p is not None and "edges" in p.tensors])
    made: list[tuple[Slot, Node, QParams | None, Node]] = []
    for slot, params in found:
        source = slot.source
        for other, at, theirs, existing in made:
            alike = at is source and str(other.spec) == str(slot.spec) and other.layout == slot.layout
            if alike and _equal(params, theirs):
                slot.node.update_arg(slot.index, existing)
                break
        else:
            grain = (slot.layout, slot.spec.granularity, slot.spec.group_size)
            # a rescaling of the channels becomes part of the quantizer behind it
            moved = source.target is reference.rescale
            x, within = (source.args[0], _moves(source)) if moved else (source, dict[str, Any]())
            with nodes.inserting_before(slot.node):
                if params is None:
                    args = (x, slot.spec.widest, slot.spec.symmetric, *grain)
                    new = nodes.call_function(reference.fake_quantize_dynamic, args, within)
                elif params.kind == "affine":
                    scale = nodes.get_attr(f"{slot.home}.scale")
                    zero = None if slot.spec.symmetric else nodes.get_attr(f"{slot.home}.zero")
                    low, high = reference.levels(slot.spec.widest, slot.spec.symmetric)
                    group = time.group(slot, params)
                    new = nodes.call_function(
                        reference.fake_quantize_affine, (x, scale, zero, low, high, *grain, group), within
                    )
                else:
                    tensors = [nodes.get_attr(f"{slot.home}.{p}") for p in ("scale", "thresholds", "table")]
                    group = time.group(slot, params)
                    new = nodes.call_function(
                        reference.fake_quantize_codebook, (x, *tensors, *grain, group), within
                    )
            new.meta = {"origin": slot.home, "stack": slot.node.meta.get("stack", ())}
            slot.node.update_arg(slot.index, new)
            made.append((slot, source, params, new))
    nodes.eliminate_dead_code()
    graph.recompile()
    return len(made)


def _moves(node: Node) -> dict[str, Any]:
    """The buffers of a `rescale` node, as arguments of a quantizer."""
    return dict(zip(("inverse", "offset"), node.args[2:], strict=False))


def _equal(a: QParams | None, b: QParams | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(tensor, b.tensors[part]) for part, tensor in a.tensors.items()
    )


class _TimeNodes:
    """The one node that groups timesteps on the finest edges, and each quantizer's map from it."""

    def __init__(self, graph: GraphModule, edges: list[Tensor]) -> None:
        self.graph, self.node = graph, None
        if not edges:
            return
        self.finest = finest(edges)
        put(graph, "time_groups.edges", self.finest)
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        with graph.graph.inserting_after(placeholders[-1]):
            at = graph.graph.get_attr("time_groups.edges")
        with graph.graph.inserting_after(at):
            self.node = graph.graph.call_function(reference.time_group, (placeholders[1], at))
        self.node.meta = {"origin": "time_groups", "stack": ()}

    def group(self, slot: Slot, params: QParams) -> Node | None:
        """The node holding each sample's group for this quantizer, or None where all groups are one."""
        if "edges" not in params.tensors or self.node is None:
            return None
        if torch.equal(params.tensors["edges"], self.finest):
            return self.node
        put(self.graph, f"{slot.home}.groups", mapping(self.finest, params.tensors["edges"]))
        at = self.graph.graph.get_attr(f"{slot.home}.groups")
        node = self.graph.graph.call_function(reference.pick, (at, self.node))
        node.meta = {"origin": f"{slot.home}/pick[0]", "stack": ()}
        return node
