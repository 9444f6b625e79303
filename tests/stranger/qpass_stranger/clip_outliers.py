"""Clip what a layer sees at some standard deviations, so that a few outliers do not stretch its scale."""

from __future__ import annotations

from fnmatch import fnmatchcase

import attrs
import torch
from attrs import validators as v
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qpass import Pass, PassContext, PassResult, PreconditionError
from qpass.errors import did_you_mean
from qpass.graph.names import inherit, origins


def clip_to_sigmas(x: Tensor, sigmas: float) -> Tensor:
    """Each sample's values, within its mean ± `sigmas` of its standard deviations.

    >>> clip_to_sigmas(torch.tensor([[0.0, 0.0, 0.0, 8.0]]), 1.0)
    tensor([[0., 0., 0., 6.]])
    """
    dims = tuple(range(1, x.dim()))
    mean = x.mean(dims, keepdim=True)
    reach = sigmas * x.std(dims, correction=1, keepdim=True)
    return torch.minimum(torch.maximum(x, mean - reach), mean + reach)


def clip_inputs(graph: GraphModule, only: str, sigmas: float) -> int:
    """Put a clip before every layer whose name matches; layers that share an input share its clip."""
    clips: dict[Node, Node] = {}
    taken = origins(graph.graph)
    for node in layers(graph, only):
        source = node.args[0]
        assert isinstance(source, Node)
        if source not in clips:
            with graph.graph.inserting_before(node):
                made = graph.graph.call_function(clip_to_sigmas, (source, sigmas))
            clips[source] = inherit(made, node, "clip", taken)
        node.update_arg(0, clips[source])
    return len(clips)


def layers(graph: GraphModule, only: str) -> list[Node]:
    """Calls of linear and convolution modules whose name matches a glob."""
    return [
        node
        for node in graph.graph.nodes
        if node.op == "call_module"
        and isinstance(graph.get_submodule(node.target), nn.Linear | nn.Conv2d)
        and fnmatchcase(node.meta["origin"], only)
    ]


@attrs.frozen(kw_only=True)
class ClipOutliers(Pass):
    """Clips the inputs of linear and convolution layers at their mean ± `sigmas` standard deviations.

    Mean and deviation are those of each sample, so nothing need be calibrated.
    """

    name = "clip-outliers"

    sigmas: float = attrs.field(
        default=6.0, validator=v.gt(0.0), metadata={"help": "standard deviations that are left"}
    )
    only: str = attrs.field(default="*", metadata={"help": "a glob: which layers"})

    def requires(self, graph: GraphModule, ctx: PassContext) -> None:
        if not layers(graph, self.only):
            names = [node.meta["origin"] for node in layers(graph, "*")]
            raise PreconditionError(
                f"clip-outliers: no layer matches {self.only!r}, {did_you_mean(self.only, names)}"
            )

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        made = clip_inputs(graph, self.only, self.sigmas)
        return PassResult(graph=graph, changed=made > 0, notes={"clips": made})
