"""How large a model is on disk, and how much of it is held as integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.conv import _ConvNd

from qpass.evaluator import Evaluator, Metric, Observation, Role, Subject
from qpass.graph.nodes import attribute
from qpass.graph.ops import device_of
from qpass.manager import PassContext
from qpass.products import multiplied
from qpass.spec import NodeSpec, QuantSpec

# better, unit, and what of the protocol determines it
FIGURES: Mapping[str, tuple[Literal["higher", "lower"], str, str]] = {
    "packed_mb": ("lower", "MB", "bytes"),
    "packed_ratio": ("lower", "", "bytes"),
    "bits_per_weight": ("lower", "bit", "bits"),
    "integer_share": ("higher", "", "share"),
}


COUNTED = "every file of the artifact; of the original, its parameters and buffers in fp32"


@attrs.frozen(kw_only=True)
class Weight:
    """A weight of a convolution, linear or other product: its shape, its bits, and its spec where it is quantized."""

    shape: tuple[int, ...]
    width: int
    spec: QuantSpec | None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        return packed_bits(self.spec, self.shape) if self.spec else self.count * self.width


@attrs.frozen(kw_only=True)
class Size(Evaluator):
    """Bytes of the artifact, and what its weights take.

    packed_mb: bytes of every file in the artifact's folder / 10^6. packed_ratio: bytes of the artifact / 4 bytes
    for each element of the original's parameters and buffers. bits_per_weight: over the quantized convolutions and
    linears, bits of codes, scales and zero points / number of weights. integer_share: weights held as codes / all
    weights of convolutions, linears and other products.
    """

    name: ClassVar[str] = "size"

    def observe(self, subject: Subject, ctx: PassContext) -> Observation:
        """Look at the artifact's folder; where there is none, add up what the specs say it would hold."""
        found = tuple(weights(subject.graph, ctx.reference))
        held = [w for w in found if w.spec is not None]
        original = 4 * sum(tensor.numel() for tensor in ctx.reference.state_dict().values())
        if subject.role == "original":
            size, how = float(original), COUNTED
        elif subject.folder is not None:
            size, how = float(folder_bytes(subject.folder)), COUNTED
        else:
            saved = sum(4 * w.count - w.bits / 8 for w in held)
            size, how = original - saved, "estimated: fp32, but quantized weights as their specs say"
        weighed = held or found
        return Observation(
            numbers={
                "packed_mb": size / 1e6,
                "packed_ratio": size / original if original else math.nan,
                "bits_per_weight": sum(w.bits for w in weighed) / max(1, sum(w.count for w in weighed)),
                "integer_share": sum(w.count for w in held) / max(1, sum(w.count for w in found)),
            },
            protocol={
                "bytes": how,
                "bits": "codes, a 32-bit scale per parameter set, a 32-bit zero point where asymmetric",
                "share": "of the weights of convolutions, linears and other products",
            },
        )

    def score(self, candidate: Observation, reference: Observation | None) -> Sequence[Metric]:
        seen: dict[Role, Observation] = {"quantized": candidate}
        if reference is not None:
            seen = {"original": reference, **seen}
        return tuple(
            Metric(
                name=name,
                value=observation.numbers[name],
                better=better,
                unit=unit,
                subject=role,
                protocol={key: observation.protocol[key]},
            )
            for role, observation in seen.items()
            for name, (better, unit, key) in FIGURES.items()
        )


def folder_bytes(folder: Path) -> int:
    """The sizes of all files below the folder, added up."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def weights(graph: GraphModule, reference: GraphModule) -> Iterator[Weight]:
    """Every weight of a convolution, linear or other product, once, however often it is called.

    A module that packs its weight no longer shows its shape: there the teacher's node of the same origin does. What
    is multiplied outside a module is a weight where it is a parameter, or computed from parameters alone.
    """
    originals = {_module_name(node): _own_weight(reference, node) for node in reference.graph.nodes}
    seen: set[str] = set()
    made = _from_parameters(graph)
    for node in graph.graph.nodes:
        spec = node.meta.get("qpass")
        held = spec.weight if isinstance(spec, NodeSpec) and spec.execution != "float" else None
        name = _module_name(node)
        weight = _own_weight(graph, node)
        if weight is None and held is not None:
            weight = originals.get(name)
        if weight is not None and name not in seen:
            seen.add(name)
            yield Weight(shape=tuple(weight.shape), width=weight.element_size() * 8, spec=held)
        for factor in multiplied(node):
            name, weight = str(factor), made(factor)
            if weight is not None and name not in seen:
                seen.add(name)
                yield Weight(shape=tuple(weight.shape), width=weight.element_size() * 8, spec=None)


def _own_weight(graph: GraphModule, node: Node) -> Tensor | None:
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module.weight if isinstance(module, (nn.Linear, _ConvNd)) else None


def _from_parameters(graph: GraphModule) -> Callable[[Any], Tensor | None]:
    """What tells a node's value, on the meta device, where it reads a parameter and no input; else None."""
    fixed, owned = set[Node](), set[Node]()
    for node in graph.graph.nodes:
        sources = node.all_input_nodes
        computed = node.op == "call_function" and sources and fixed.issuperset(sources)
        if node.op == "get_attr" or node.target is device_of or computed:
            fixed.add(node)
        if node.op == "get_attr" and isinstance(attribute(graph, str(node.target)), nn.Parameter):
            owned.add(node)
        if not owned.isdisjoint(sources):
            owned.add(node)

    def value(node: Node) -> Any:
        if node.op == "get_attr":
            found = attribute(graph, str(node.target))
            return found.to("meta") if isinstance(found, Tensor) else found
        if node.target is device_of:
            return torch.device("meta")
        args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def weight(factor: Any) -> Tensor | None:
        made = value(factor) if isinstance(factor, Node) and factor in fixed & owned else None
        return made if isinstance(made, Tensor) else None

    return weight


def _module_name(node: Node) -> str:
    """The dotted name without the number of the call: `a.b#2` is the second call of `a.b`."""
    return str(node.meta.get("origin", node.target)).split("#")[0]


def packed_bits(spec: QuantSpec, shape: Sequence[int]) -> float:
    """Bits of a weight (O, I, ...) as codes, with a scale for each parameter set and a zero point if asymmetric.

    >>> packed_bits(QuantSpec(bits=4, granularity="channel", symmetric=True), (8, 6, 3, 3))
    1984
    """
    each = math.prod(shape[1:])
    codes = sum(spec.bits) * each if isinstance(spec.bits, tuple) else spec.bits * each * shape[0]
    sets = {
        "tensor": 1,
        "channel": shape[0],
        "token": shape[0],
        "group": shape[0] * -(-shape[1] // spec.group_size) if spec.group_size else 0,
    }[spec.granularity]
    return codes + sets * (32 if spec.symmetric or spec.kind == "codebook" else 64)
