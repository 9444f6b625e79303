"""Who reads a tensor, seen through changes of shape that keep every value in its place."""

from __future__ import annotations

from collections.abc import Set

from torch.fx import GraphModule, Node

from qpass.graph.nodes import aten

FLAT = (
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.contiguous.default, aten.clone.default, aten.to.dtype,
)  # fmt: skip


def unflat(node: Node) -> Node:
    """The tensor before such changes. Where both have C values last, these are the same channels."""
    while node.target in FLAT and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def read_only_by(node: Node, readers: Set[Node]) -> bool:
    """Whether all that comes of the tensor goes to these."""
    return all(user in readers or (user.target in FLAT and read_only_by(user, readers)) for user in node.users)


def alone(graph: GraphModule, parameter: object) -> bool:
    """Whether a parameter or buffer, where there is one, has no other reader."""
    if not isinstance(parameter, Node):
        return True
    same = [n for n in graph.graph.find_nodes(op="get_attr") if n.target == parameter.target]
    return sum(len(n.users) for n in same) == 1
