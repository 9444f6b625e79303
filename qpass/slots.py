"""Where quantizers sit: one slot for each quantized weight and each quantized input of a node.

A slot's fitted parameters are buffers under its home: `<module>.weight_q` for a weight, which all calls of a
module share, and `<node>.input0_q` for an input, where the node's origin names the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qpass.graph.attention import tokens_last
from qpass.graph.tensors import get, put
from qpass.kernels.reference import CHANNEL_FIRST, CHANNEL_LAST, TOKEN_LAST, WEIGHT
from qpass.quantizer import QParams
from qpass.spec import NodeSpec, QuantSpec

PARTS = ("scale", "zero", "thresholds", "table", "edges")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MATMULS: tuple[Callable[..., Tensor], ...] = (torch.ops.aten.matmul.default, torch.ops.aten.bmm.default)


@attrs.frozen(kw_only=True, eq=False)
class Slot:
    """One quantizer: `index` is -1 for the weight, else which of the node's inputs it quantizes."""

    node: Node
    index: int
    spec: QuantSpec
    layout: str
    home: str

    @property
    def source(self) -> Node:
        """The node whose value an input slot quantizes."""
        value = self.node.args[self.index]
        assert isinstance(value, Node), f"input {self.index} of {self.node.meta['origin']} is not a tensor"
        return value


def layer(graph: GraphModule, node: Node) -> nn.Module | None:
    """The linear or convolution module that a node calls, if it does."""
    if node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if isinstance(module, LAYERS) else None


def weight_of(graph: GraphModule, slot: Slot) -> Tensor:
    """The weight that a weight slot quantizes."""
    module = layer(graph, slot.node)
    assert module is not None
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def spec_of(node: Node) -> NodeSpec | None:
    """What `assign` decided for the node, if anything."""
    spec = node.meta.get("qpass")
    return spec if isinstance(spec, NodeSpec) else None


def slots(graph: GraphModule) -> Iterator[Slot]:
    """Every slot in graph order; a module called several times gives its weight once."""
    weights: set[str] = set()
    for node in graph.graph.nodes:
        spec = spec_of(node)
        if spec is None:
            continue
        module = layer(graph, node)
        home = str(node.target)
        if spec.weight is not None and home not in weights:
            weights.add(home)
            yield Slot(node=node, index=-1, spec=spec.weight, layout=WEIGHT, home=f"{home}.weight_q")
        for index, chosen in enumerate(spec.inputs):
            if chosen is not None:
                layout = _layout(node, module, index, chosen)
                at = f"{_home(node)}.input{index}_q"
                yield Slot(node=node, index=index, spec=chosen, layout=layout, home=at)


def _layout(node: Node, module: nn.Module | None, index: int, spec: QuantSpec) -> str:
    if module is not None:
        return CHANNEL_LAST if isinstance(module, nn.Linear) else CHANNEL_FIRST
    # where all values share their parameters the axes mean nothing
    return TOKEN_LAST if spec.granularity == "token" and tokens_last(node, index) else CHANNEL_LAST


def _home(node: Node) -> str:
    """A node's origin as a dotted path: `a.b#2` is `a.b.call2`, `a.b/qk[0]` is `a.b.qk_0`."""
    origin = str(node.meta["origin"])
    origin = re.sub(r"#(\d+)$", r".call\1", origin)
    origin = re.sub(r"\[(\d+)\]$", r"_\1", origin)
    return origin.replace("/", ".").lstrip(".")


def find(graph: GraphModule, dotted: str) -> Tensor | None:
    """The tensor of that name, if there is one."""
    try:
        return get(graph, dotted)
    except KeyError:
        return None


def read_params(graph: GraphModule, slot: Slot) -> QParams | None:
    """The slot's fitted parameters, or None where nothing has been fitted."""
    found = {part: find(graph, f"{slot.home}.{part}") for part in PARTS}
    tensors = {part: tensor for part, tensor in found.items() if tensor is not None}
    if "scale" in tensors and slot.spec.kind == "affine" and slot.spec.symmetric:
        tensors["zero"] = torch.zeros_like(tensors["scale"])
    return QParams(kind=slot.spec.kind, tensors=tensors) if "scale" in tensors else None


def write_params(graph: GraphModule, slot: Slot, params: QParams) -> None:
    """Keep fitted parameters as buffers at the slot's home."""
    for part, tensor in params.tensors.items():
        if part == "zero" and slot.spec.symmetric:
            continue  # it is 0, and takes as much room as the scale
        put(graph, f"{slot.home}.{part}", tensor)
