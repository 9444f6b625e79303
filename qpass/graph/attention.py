"""Splits fused attention into matmul, softmax, matmul, where q, k, v and post-softmax quantizers sit."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from qpass.errors import TraceError
from qpass.graph.names import inherit, origins
from qpass.graph.nodes import aten, bound, called
from qpass.graph.ops import device_of
from qpass.kernels import reference

SDPA = aten.scaled_dot_product_attention.default
SOFTMAX = (aten.softmax.int, aten._safe_softmax.default)
"""What a split attention calls: the second, where rows without any key are zero, under a mask."""
_SOFTMAXES = (*SOFTMAX, aten._softmax.default)
_PASSING = (
    aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.dropout.default, aten.clone.default,
    aten.contiguous.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default,
    aten.expand.default, aten.transpose.int, aten.permute.default, reference.fake_quantize_affine,
    reference.fake_quantize_codebook, reference.fake_quantize_dynamic,
)  # fmt: skip


def after_softmax(value: Any) -> bool:
    """Whether it is a softmax's output, up to its dtype, its shape and rounding."""
    while isinstance(value, Node) and value.target in _PASSING:
        value = value.args[0]
    return isinstance(value, Node) and value.target in _SOFTMAXES


def tokens_last(product: Node, operand: int) -> bool:
    """Whether that operand of an attention's product has its tokens in the last axis, (..., channels, tokens).

    In q k^T it is the second. In the product with v, whose rows the softmax weighs, it is neither, or both where it
    is written the other way round, v^T softmax(...)^T.
    """
    left, right = (after_softmax(value) for value in product.args[:2])
    return right or (operand == 1 and not left)


def settle_attention(graph: Graph) -> None:
    """Writes down what a split must know, while it is known: the scale, and boolean masks as floats."""
    for node in called(graph, SDPA):
        given = bound(node)
        query, mask = given["query"], given["attn_mask"]
        if given["scale"] is None:
            width = query.meta["val"].shape[-1]
            if not isinstance(width, int):
                raise TraceError("attention with a head width that is not fixed cannot be traced")
            node.update_kwarg("scale", 1.0 / math.sqrt(width))
        if mask is not None and mask.meta["val"].dtype is torch.bool:
            with graph.inserting_before(node):
                dtype = query.meta["val"].dtype
                zero = graph.call_function(aten.zeros_like.default, (mask,), {"dtype": dtype})
                no = graph.call_function(aten.logical_not.default, (mask,))
                bias = graph.call_function(aten.masked_fill.Scalar, (zero, no, -math.inf))
            for made in (zero, no, bias):
                made.meta = dict(node.meta)
            _set_argument(node, 3, "attn_mask", bias)


def split_attention(gm: GraphModule, only: Collection[str] | None = None) -> int:
    """Replaces fused attentions (those with an origin in `only`) by their parts; returns how many.

    softmax((scale * q) k^T + mask) v, with origins `owner/qk[k]`, `owner/softmax[k]`, `owner/pv[k]`.

    The parts stay in the model's dtype. The fused kernel keeps scores in fp32; here bf16 and fp16 round them, an error
    that grows with the scores: by tens of thousands, 10% of the result. A softmax in fp32 would come no closer.
    """
    fused = [n for n in called(gm.graph, SDPA) if only is None or n.meta["origin"] in only]
    taken = origins(gm.graph)
    for node in fused:
        _split(gm.graph, node, taken)
    if fused:
        gm.graph.lint()
        gm.recompile()
    return len(fused)


def _split(graph: Graph, node: Node, taken: set[str]) -> None:
    given = bound(node)
    if given["dropout_p"] or given["scale"] is None:
        raise TraceError(f"{node.meta['origin']}: attention with dropout or without a scale cannot be split")
    query, key, value, mask = given["query"], given["key"], given["value"], given["attn_mask"]

    def do(name: str, function: Any, *args: Any, **kwargs: Any) -> Node:
        made = graph.call_function(function, args, kwargs)
        return inherit(made, node, name, taken)

    with graph.inserting_before(node):
        if given["enable_gqa"]:
            heads = do("qk_heads", aten.sym_size.int, query, -3)
            for_key = do("qk_groups", operator.floordiv, heads, do("qk_heads", aten.sym_size.int, key, -3))
            for_value = do("pv_groups", operator.floordiv, heads, do("pv_heads", aten.sym_size.int, value, -3))
            key = do("qk_repeat", aten.repeat_interleave.self_int, key, for_key, -3)
            value = do("pv_repeat", aten.repeat_interleave.self_int, value, for_value, -3)
        # scaled before the product, whose sums may exceed what fp16 holds
        scaled = do("qk_scale", aten.mul.Tensor, query, given["scale"])
        scores = do("qk", aten.matmul.default, scaled, do("qk_transpose", aten.transpose.int, key, -2, -1))
        if given["is_causal"]:
            rows = do("qk_rows", aten.sym_size.int, query, -2)
            columns = do("qk_columns", aten.sym_size.int, key, -2)
            device = do("qk_device", device_of, query)
            ones = do("qk_ones", aten.ones.default, [rows, columns], dtype=torch.bool, device=device)
            later = do("qk_later", aten.triu.default, ones, 1)
            scores = do("qk_causal", aten.masked_fill.Scalar, scores, later, -math.inf)
        if mask is not None:
            scores = do("qk_mask", aten.add.Tensor, scores, mask)
        softmax = SOFTMAX[0] if mask is None else SOFTMAX[1]
        weights = do("softmax", softmax, scores, -1)
        result = do("pv", aten.matmul.default, weights, value)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _set_argument(node: Node, position: int, name: str, value: Node) -> None:
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)
