"""Two quantizers for a layer that reads two concatenated tensors, each with a range of its own."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any, ClassVar

import attrs
import torch
from torch import nn
from torch.fx import GraphModule, Node

from qpass.activations import run_recording
from qpass.errors import PreconditionError
from qpass.kernels import reference
from qpass.manager import Pass, PassContext, PassResult
from qpass.slots import layer, slots, spec_of
from qpass_passes.fitting import refuse_fitted

CAT = torch.ops.aten.cat.default


@attrs.frozen(kw_only=True)
class SplitShortcut(Pass):
    """Split each layer that reads a concatenation into one for each part (Q-Diffusion, 2302.04304, section 3.3.2).

    W [x1, x2] = W1 x1 + W2 x2, where W1 and W2 are W's columns: equal in full precision, and both weights and inputs
    get scales of their own. Such layers are found by their `cat` node: in diffusers' UNets the shortcuts of up
    blocks, where deep features meet those of a skip connection, of a very different range. A layer that is called for
    concatenations of unlike widths is left alone.
    """

    name: ClassVar[str] = "split-shortcut"
    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"realised"})

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite every such layer that is quantized."""
        found = {node: _parts(graph, node) for node in graph.graph.nodes if spec_of(node) is not None}
        wanted = list(dict.fromkeys(part for parts in found.values() for part in parts))
        seen = run_recording(graph, wanted, _example(ctx)) if wanted else {}
        widths = {
            node: [_width(graph, node, seen[part]) for part in parts]
            for node, parts in found.items()
            if parts and _along_channels(graph, node, seen[parts[0]].dim())
        }
        # a layer whose calls read unlike concatenations would need other columns at each
        unlike = {
            str(a.target) for a, b in combinations(widths, 2) if a.target == b.target and widths[a] != widths[b]
        }
        widths = {node: each for node, each in widths.items() if str(node.target) not in unlike}
        refuse_fitted(graph, self.name, (slot for slot in slots(graph) if slot.node in widths))
        for node, each in widths.items():
            _split(graph, node, each)
        graph.graph.eliminate_dead_code()
        for name in {str(node.target) for node in widths} - {str(node.target) for node in graph.graph.nodes}:
            graph.delete_submodule(name)
        graph.recompile()
        return PassResult(
            graph=graph, changed=bool(widths), notes={"split": [str(node.meta["origin"]) for node in widths]}
        )


def _example(ctx: PassContext) -> tuple[torch.Tensor, ...]:
    return tuple(part.to(ctx.device) for part in ctx.model.example())


def _parts(graph: GraphModule, node: Node) -> list[Node]:
    """The tensors whose concatenation the node, a layer, reads; none where it reads no such."""
    module = layer(graph, node)
    source = node.args[0] if module is not None else None
    if isinstance(source, Node) and source.target is reference.rescale:
        source = source.args[0]
        if isinstance(source, Node) and source.target is CAT:
            raise PreconditionError(
                f"split-shortcut: a factor for each channel stands before {str(node.target)!r} already; put "
                "'split-shortcut' before the pass that put it there, such as 'tcr' or 'smooth'"
            )
    if not isinstance(source, Node) or source.target is not CAT or getattr(module, "groups", 1) != 1:
        return []
    inside: Any = source.args[0]
    return list(inside) if len(inside) > 1 else []


def _along_channels(graph: GraphModule, node: Node, rank: int) -> bool:
    """Whether the concatenation that a layer reads, of so many axes, is one of its channels."""
    source: Any = node.args[0]
    along = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
    return bool(along % rank == (rank - 1 if isinstance(layer(graph, node), nn.Linear) else 1))


def _width(graph: GraphModule, node: Node, value: torch.Tensor) -> int:
    """Input channels that a part brings."""
    return value.shape[-1 if isinstance(layer(graph, node), nn.Linear) else 1]


def _split(graph: GraphModule, node: Node, widths: list[int]) -> None:
    """Replace the node by a sum of layers, one for each part; the first has the bias."""
    module, parts = layer(graph, node), _parts(graph, node)
    assert module is not None
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    total: Node | None = None
    for place, (part, columns) in enumerate(zip(parts, torch.split(weight, widths, 1), strict=True)):
        mine = _narrowed(module, columns, bias=place == 0)
        name = f"{node.target}_part{place}"
        graph.add_submodule(name, mine)
        with graph.graph.inserting_before(node):
            made = graph.graph.call_module(name, (part,))
            made.meta = {**node.meta, "origin": f"{node.meta['origin']}_part{place}"}
            if total is not None:
                added = graph.graph.call_function(torch.ops.aten.add.Tensor, (total, made))
                # the whole sum is what the layer gave, and has its name
                whole = place == len(parts) - 1
                origin = str(node.meta["origin"]) if whole else f"{node.meta['origin']}/add[{place - 1}]"
                added.meta = {"origin": origin, "stack": node.meta.get("stack", ())}
                made = added
        total = made
    assert total is not None
    node.replace_all_uses_with(total)
    graph.graph.erase_node(node)


def _narrowed(module: nn.Module, columns: torch.Tensor, *, bias: bool) -> nn.Module:
    mine = copy.deepcopy(module)
    mine.weight = nn.Parameter(columns.detach().clone(), requires_grad=False)
    if not bias:
        mine.register_parameter("bias", None)
    if isinstance(mine, nn.Linear):
        mine.in_features = columns.shape[1]
    else:
        mine.in_channels = columns.shape[1]  # type: ignore[assignment]
    return mine
