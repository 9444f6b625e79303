"""Layers that read the same tensors, so that one factor for each channel serves them all, as with q, k and v."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qpass.errors import PreconditionError, did_you_mean
from qpass.kernels.reference import CHANNEL_FIRST, CHANNEL_LAST
from qpass.slots import layer, spec_of


@attrs.frozen(kw_only=True, eq=False)
class Tie:
    """`layers` read `tensors` and nothing else; every call of each layer is among `calls`."""

    layers: tuple[str, ...]
    calls: tuple[Node, ...]
    tensors: tuple[Node, ...]
    layout: str

    @property
    def name(self) -> str:
        """The first layer's."""
        return self.layers[0]

    def weights(self, graph: GraphModule) -> list[Tensor]:
        """The layers' weights, outputs x channels x what remains, in fp32."""
        found = []
        for name in self.layers:
            weight = graph.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            found.append(weight.detach().float().reshape(*weight.shape[:2], -1))
        return found

    def salience(self, graph: GraphModule) -> Tensor:
        """The largest absolute weight that each channel meets, (C,)."""
        return torch.stack([weight.abs().amax((0, 2)) for weight in self.weights(graph)]).amax(0)


def ties(graph: GraphModule, globs: Sequence[str] = ("*",)) -> list[Tie]:
    """The layers whose weight and input are both rounded and whose name matches, by what they read.

    Left out: grouped convolutions, whose channels meet few of the weights, and layers of which one call is not
    quantized.
    """
    calls: dict[str, list[Node]] = {}
    for node in graph.graph.nodes:
        if layer(graph, node) is not None:
            calls.setdefault(str(node.target), []).append(node)
    members: list[tuple[set[str], set[Node]]] = []
    for name, nodes in calls.items():
        if any(fnmatchcase(name, glob) for glob in globs) and all(_eligible(graph, node) for node in nodes):
            tensors = {source for node in nodes if isinstance(source := node.args[0], Node)}
            touching = [one for one in members if one[1] & tensors]
            members = [one for one in members if one not in touching]
            members.append(({name}.union(*(n for n, _ in touching)), tensors.union(*(t for _, t in touching))))
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    found = []
    for names, tensors in members:
        reading = sorted((node for name in names for node in calls[name]), key=order.__getitem__)
        layouts = {CHANNEL_LAST if isinstance(layer(graph, n), nn.Linear) else CHANNEL_FIRST for n in reading}
        if len(layouts) == 1:
            found.append(
                Tie(
                    layers=tuple(dict.fromkeys(str(node.target) for node in reading)),
                    calls=tuple(reading),
                    tensors=tuple(sorted(tensors, key=order.__getitem__)),
                    layout=layouts.pop(),
                )
            )  # fmt: skip
    return sorted(found, key=lambda tie: order[tie.calls[0]])


def check(graph: GraphModule, who: str, globs: Sequence[str]) -> None:
    """Every glob matches a layer."""
    names = [str(node.target) for node in graph.graph.nodes if layer(graph, node) is not None]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            hint = did_you_mean(glob, names)
            raise PreconditionError(f"{who}: the glob {glob!r} matches no layer, {hint}")


def _eligible(graph: GraphModule, node: Node) -> bool:
    module, spec = layer(graph, node), spec_of(node)
    if module is None or spec is None or spec.weight is None or not spec.inputs or spec.inputs[0] is None:
        return False
    return getattr(module, "groups", 1) == 1 and isinstance(node.args[0], Node)
