"""Every product in a graph: its multiply-accumulates, and the bits of its two factors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from qpass import einsum
from qpass.spec import NodeSpec, QuantSpec

aten = torch.ops.aten
CONVOLUTIONS = {
    F.conv1d, F.conv2d, F.conv3d, aten.convolution.default,
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
LINEARS = {F.linear, aten.linear.default}
MATMULS = {
    torch.matmul, torch.bmm, torch.mm, operator.matmul, aten.matmul.default, aten.bmm.default, aten.mm.default
}  # fmt: skip
ADDED = {  # a product, and what it is added to
    torch.baddbmm, torch.addmm, torch.addbmm, aten.baddbmm.default, aten.addmm.default, aten.addbmm.default
}  # fmt: skip
EINSUMS = {torch.einsum, aten.einsum.default}
ATTENTIONS = {F.scaled_dot_product_attention, aten.scaled_dot_product_attention.default}


def multiplied(node: Node) -> tuple[Any, ...]:
    """The factors of a function that sums products; none of any other node, as of an einsum that only permutes."""
    if node.op != "call_function":
        return ()
    target, args = node.target, (*node.args, *node.kwargs.values())
    if target in CONVOLUTIONS | TRANSPOSED | LINEARS | MATMULS:
        return args[:2]
    if target in ADDED:
        return args[1:3]
    if target in EINSUMS and einsum.sums_products(str(args[0])):
        return tuple(_operands(args))
    return args[:3] if target in ATTENTIONS else ()


@attrs.frozen(kw_only=True)
class Product:
    """A convolution or matrix product: its multiply-accumulates, and the bits of its two factors."""

    macs: int
    left: float
    right: float

    @property
    def bops(self) -> float:
        return self.macs * self.left * self.right


def count(
    graph: GraphModule, inputs: Sequence[Tensor], known: Mapping[str, Sequence[Product]] | None = None
) -> dict[str, tuple[Product, ...]]:
    """Products by node, named by origin; a quantized node, or an einsum, that cannot be counted has none.

    An op that is not known here is counted as the node of `known` that has its origin.
    """
    counting = _Counting(graph, known or {})
    with torch.no_grad():
        counting.run(*inputs)
    return counting.found


class _Counting(Interpreter):
    """Runs a graph, and counts every product as it meets its tensors."""

    def __init__(self, graph: GraphModule, known: Mapping[str, Sequence[Product]]) -> None:
        super().__init__(graph)
        self.known = known
        self.found: dict[str, tuple[Product, ...]] = {}

    def run_node(self, n: Node) -> Any:
        args, _ = self.fetch_args_kwargs_from_env(n)
        value = super().run_node(n)
        if n.op in ("call_module", "call_function"):
            name = n.meta.get("origin", n.name)
            target = self.fetch_attr(n.target) if n.op == "call_module" else n.target  # type: ignore[arg-type]
            spec = n.meta.get("qpass")
            if found := products(target, args, value, spec or NodeSpec()):
                self.found[name] = found
            elif spec is not None or _unknown_order(target, args):
                self.found[name] = tuple(_restated(p, spec or NodeSpec()) for p in self.known.get(name, ()))
        return value


def products(target: Any, args: Sequence[Any], output: Any, spec: NodeSpec) -> tuple[Product, ...]:
    """The products in one call of a module or function; none if it is of no kind that is counted."""
    weight = _weight(target, args)
    if weight is not None:
        # a transposed convolution spreads each input value, any other product gathers into each output value
        values = args[0] if _transposed(target, args) else output
        macs = values.numel() * weight[0].numel()
        return (Product(macs=macs, left=_bits(spec.weight, weight), right=_input_bits(spec, 0, args[0])),)
    if target in MATMULS:
        a, b = args[:2]
        macs = output.numel() * a.shape[-1]
        return (Product(macs=macs, left=_input_bits(spec, 0, a), right=_input_bits(spec, 1, b)),)
    if target in ADDED:
        a, b = args[1:3]
        macs = a.numel() * b.shape[-1]
        return (Product(macs=macs, left=_input_bits(spec, 1, a), right=_input_bits(spec, 2, b)),)
    if target in EINSUMS and len(tensors := _operands(args)) == 2:
        a, b = tensors
        macs = einsum.macs(args[0], tensors)
        return (Product(macs=macs, left=_input_bits(spec, 0, a), right=_input_bits(spec, 1, b)),) if macs else ()
    if target in ATTENTIONS:
        q, k, v = args[:3]
        weights = q.numel() // q.shape[-1] * k.shape[-2]  # attention weights, B x heads x L x S
        return (
            Product(macs=weights * q.shape[-1], left=_input_bits(spec, 0, q), right=_input_bits(spec, 1, k)),
            # inside one fused node the attention weights are never quantized
            Product(macs=weights * v.shape[-1], left=_bits(None, q), right=_input_bits(spec, 2, v)),
        )
    return ()


def _operands(args: Sequence[Any]) -> Sequence[Any]:
    """Einsum's tensors, which come one by one or in a list."""
    return args[1] if isinstance(args[1], list | tuple) else args[1:]


def _unknown_order(target: Any, args: Sequence[Any]) -> bool:
    """Whether it is an einsum of three tensors or more: what it takes depends on the order torch chooses."""
    return target in EINSUMS and len(_operands(args)) > 2


def _weight(target: Any, args: Sequence[Any]) -> Tensor | None:
    if isinstance(target, (nn.Linear, _ConvNd)):
        return target.weight
    return args[1] if target in CONVOLUTIONS | TRANSPOSED | LINEARS else None


def _transposed(target: Any, args: Sequence[Any]) -> bool:
    if target is aten.convolution.default:
        return bool(args[6])
    return target in TRANSPOSED or isinstance(target, _ConvTransposeNd)


def _restated(product: Product, spec: NodeSpec) -> Product:
    """The teacher's product at the precision of the node that stands for it."""
    factors: tuple[QuantSpec | None, ...] = spec.inputs
    if spec.weight is not None:
        factors = (spec.weight, *spec.inputs[:1])
    left, right = (*factors, None, None)[:2]
    return attrs.evolve(
        product,
        left=_mean(left) if left else product.left,
        right=_mean(right) if right else product.right,
    )


def _input_bits(spec: NodeSpec, index: int, tensor: Tensor) -> float:
    return _bits(spec.inputs[index] if index < len(spec.inputs) else None, tensor)


def _bits(spec: QuantSpec | None, tensor: Tensor) -> float:
    if spec is not None:
        return _mean(spec)
    return 16.0 if tensor.dtype in (torch.bfloat16, torch.float16) else 32.0


def _mean(spec: QuantSpec) -> float:
    return sum(spec.bits) / len(spec.bits) if isinstance(spec.bits, tuple) else float(spec.bits)
