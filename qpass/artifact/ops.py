"""The functions a loaded graph may call, by name. Nothing else in an artifact is ever executed."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qpass.errors import ArtifactError
from qpass.graph import ops as graph_ops
from qpass.kernels import reference

# aten ops that compute from their arguments alone: no files, no randomness, no writing in place
_ATEN = frozenset(
    """
    _safe_softmax _softmax _to_copy _unsafe_view _weight_norm abs adaptive_avg_pool2d add addmm alias amax amin
    arange argmax argmin avg_pool2d baddbmm bitwise_and bitwise_not bitwise_or bmm broadcast_to bucketize cat ceil
    chunk clamp clamp_max clamp_min clone concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d copy cos cumsum detach diagonal diagonal_scatter div einsum elu embedding
    empty empty_like eq exp exp2 expand expand_as eye fill flatten flip floor floor_divide full full_like gather ge
    gelu group_norm gt hardsigmoid hardswish index index_fill index_put index_select interpolate isfinite isnan
    layer_norm le leaky_relu lift_fresh_copy linear linspace log log2 logical_and logical_not logical_or logsumexp
    lt masked_fill masked_scatter matmul max max_pool2d maximum mean min minimum mish mm movedim mul narrow
    native_group_norm native_layer_norm ne neg new_full new_ones new_zeros norm one_hot ones ones_like outer pad
    permute pixel_shuffle pixel_unshuffle polar pow prod reciprocal relu relu6 remainder repeat repeat_interleave
    reshape reshape_as rms_norm roll round rsqrt rsub scalar_tensor scaled_dot_product_attention scatter select
    select_scatter sigmoid sign silu sin slice slice_scatter softmax softplus split split_with_sizes sqrt squeeze
    stack std sub sum sym_numel sym_size sym_storage_offset sym_stride t tan tanh tensor_split tile to transpose
    tril triu type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_nearest1d upsample_nearest2d var var_mean view view_as view_as_complex view_as_real
    where zero zeros zeros_like
    """.split()  # noqa: SIM905 - a list of 150 short lines reads worse
)
_PYTHON = {
    f"{module.__name__.lstrip('_')}.{name}": getattr(module, name)
    for module, names in (
        (operator, "add and_ eq floordiv ge getitem gt le lt mod mul ne neg not_ or_ pow sub truediv"),
        (math, "ceil floor sqrt trunc"),
    )
    for name in names.split()
}
_TORCH = {
    f"torch.{name}": getattr(torch, name)
    for name in ["sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not"]
}
_OWN = {
    f"{function.__module__}:{function.__qualname__}": function
    for function in (
        graph_ops.affine_by_group,
        graph_ops.device_of,
        reference.fake_quantize_affine,
        reference.fake_quantize_codebook,
        reference.fake_quantize_dynamic,
        reference.pick,
        reference.rescale,
        reference.time_group,
    )
}
_FIXED: dict[str, Callable[..., Any]] = {**_PYTHON, **_TORCH, **_OWN}
_NAMES = {id(function): name for name, function in _FIXED.items()}
Ops = Mapping[str, tuple[Callable[..., Any], str]]


def plugin_op_name(op: Any) -> str:
    """The name in artifacts of a function that a plugin registers: a module's own function, or a torch op.

    >>> plugin_op_name(plugin_op_name)
    'qpass.artifact.ops:plugin_op_name'
    >>> plugin_op_name(torch.ops.aten.addcmul.default)
    'aten.addcmul.default'
    """
    if isinstance(op, torch._ops.OpOverload):
        return str(op)
    module, name = getattr(op, "__module__", None), getattr(op, "__qualname__", "<")
    if not callable(op) or not isinstance(module, str) or "<" in name:
        raise TypeError(
            f"a graph op must be a function that its module defines by name, or a torch op, not {op!r}"
        )
    return f"{module}:{name}"


def op_name(target: Any, plugin_ops: Ops) -> str:
    """The name of a graph node's function; an error where it is not on the list."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, rest = str(target).partition(".")
        name, _, overload = rest.partition(".")
        if namespace == "aten" and name in _ATEN and not target._schema.is_mutable:
            return f"aten.{name}.{overload}"
    elif id(target) in _NAMES:
        return _NAMES[id(target)]
    for name, (function, _plugin) in plugin_ops.items():
        if function is target:
            return name
    raise ArtifactError(
        f"the graph calls {target}, which is not on the list of ops an artifact may hold; "
        "a plugin that puts its own functions into graphs names them in the hook register_ops"
    )


def resolve(name: str, plugin_ops: Ops) -> Callable[..., Any]:
    """The function of that name; an error naming the way out where it is not on the list."""
    if name in _FIXED:
        return _FIXED[name]
    if name in plugin_ops:
        return plugin_ops[name][0]
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "aten" and parts[1] in _ATEN:
        packet = getattr(torch.ops.aten, parts[1], None)
        op = getattr(packet, parts[2], None) if parts[2] in (packet.overloads() if packet else ()) else None
        if op is not None and not op._schema.is_mutable:
            function: Callable[..., Any] = op
            return function
    package = parts[0].partition(":")[0]
    if package != "qpass" and (":" in name or (len(parts) == 3 and package not in ("aten", "torch"))):
        raise ArtifactError(
            f"the graph calls {name!r} of the plugin {package!r}, which is not installed; "
            f"install it, or give its file with --plugin"
        )
    raise ArtifactError(
        f"the graph calls {name!r}, which is not on the list of ops an artifact may hold; "
        "install a newer qpass if the artifact was made with one, else do not trust it"
    )
