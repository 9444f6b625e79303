"""Quantized arithmetic in plain PyTorch: what every other kernel is held to.

A tensor is seen as (B, K, M): B samples, K sets of parameters, M values in each. `scale` and `zero` are (G, K),
one row for each time group; `group` (B,) picks each sample's row. The order is fixed everywhere:
`round(x * inv_scale) + zero`, in fp32, ties to even. What fake-quantizes an input may first move its channels,
`x * inverse + offset` with both (C,): a kernel that multiplies by 1/scale anyway does so for free.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT, CHANNEL_FIRST, CHANNEL_LAST = "weight", "channel-first", "channel-last"
COMPARED = 64  # levels up to which comparing with each of them is quicker, compiled, than a search
TOKEN_LAST = "token-last"  # (..., channels, tokens): the keys of attention in their product with the queries


def arrange(x: Tensor, layout: str, granularity: str, group_size: int) -> Tensor:
    """x as (B, K, M), its values by parameter set. A weight has B = 1; a short last group repeats its own channels.

    >>> arrange(torch.zeros(8, 6, 3, 3), "weight", "channel", 0).shape
    torch.Size([1, 8, 54])
    >>> arrange(torch.zeros(5, 6, 4, 4), "channel-first", "group", 4).shape
    torch.Size([5, 2, 64])
    """
    if layout == WEIGHT:
        rows = x.reshape(1, x.shape[0], x.shape[1], -1)
        if granularity == "tensor":
            return rows.reshape(1, 1, -1)
        if granularity == "channel":
            return rows.reshape(1, x.shape[0], -1)
        padded = _pad(rows, 2, group_size)
        return padded.reshape(1, x.shape[0] * (padded.shape[2] // group_size), -1)
    if layout == TOKEN_LAST:
        return arrange(x.transpose(-2, -1), CHANNEL_LAST, granularity, group_size)
    batch = x.shape[0]
    if granularity == "tensor":
        return x.reshape(batch, 1, -1)
    if granularity == "token":
        return x.flatten(2).transpose(1, 2) if layout == CHANNEL_FIRST else x.reshape(batch, -1, x.shape[-1])
    channels = x.flatten(2) if layout == CHANNEL_FIRST else x.reshape(batch, -1, x.shape[-1]).transpose(1, 2)
    if granularity == "channel":
        return channels
    padded = _pad(channels, 1, group_size)
    return padded.reshape(batch, padded.shape[1] // group_size, -1)


def _pad(x: Tensor, dim: int, multiple: int) -> Tensor:
    """Fills a short last group with its own channels: anything else would count as data where scales are fitted."""
    size = x.shape[dim]
    own, short = size % multiple, -size % multiple
    if not short:
        return x
    again = [x.narrow(dim, size - own, own)] * -(-short // own)
    return torch.cat([x, *again], dim).narrow(dim, 0, size + short)


def spread(values: Tensor, x: Tensor, layout: str, granularity: str, group_size: int) -> Tensor:
    """Parameters (B, K), or (1, K) for all samples, shaped to broadcast against x: the inverse of `arrange`."""
    if layout == WEIGHT:
        if granularity == "tensor":
            return values.reshape([1] * x.dim())
        if granularity == "channel":
            return values.reshape([-1] + [1] * (x.dim() - 1))
        wide = values.reshape(x.shape[0], -1).repeat_interleave(group_size, 1)[:, : x.shape[1]]
        return wide.reshape(list(wide.shape) + [1] * (x.dim() - 2))
    if layout == TOKEN_LAST:
        return spread(values, x.transpose(-2, -1), CHANNEL_LAST, granularity, group_size).transpose(-2, -1)
    rows = values.shape[0]
    if granularity == "tensor":
        return values.reshape([rows] + [1] * (x.dim() - 1))
    if granularity == "token":
        if layout == CHANNEL_FIRST:
            return values.reshape([rows, 1, *x.shape[2:]])
        return values.reshape([rows, *x.shape[1:-1], 1])
    channels = x.shape[1] if layout == CHANNEL_FIRST else x.shape[-1]
    if granularity == "group":
        values = values.repeat_interleave(group_size, 1)[:, :channels]
    if layout == CHANNEL_FIRST:
        return values.reshape([rows, channels] + [1] * (x.dim() - 2))
    return values.reshape([rows] + [1] * (x.dim() - 2) + [channels])


def levels(bits: int | Tensor, symmetric: bool) -> tuple[int | Tensor, int | Tensor]:
    """The lowest and highest code: -2^(b-1) .. 2^(b-1)-1 if symmetric, else 0 .. 2^b-1.

    >>> levels(8, True), levels(4, False)
    ((-128, 127), (0, 15))
    """
    if symmetric:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0 * bits, 2**bits - 1


def encode_affine(x: Tensor, scale: Tensor, zero: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Codes of x, as fp32 integers; every argument broadcasts against x."""
    codes = torch.round(x.float() * scale.reciprocal()).add_(zero)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return clip(codes, low, high)
    return codes.clamp_(low, high)


def clip(codes: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Codes kept within the lowest and the highest, which are numbers or broadcast against them."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return codes.clamp(torch.as_tensor(low), torch.as_tensor(high))
    return codes.clamp(low, high)


def fake_quantize_affine(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    low: int,
    high: int,
    layout: str,
    granularity: str,
    group_size: int,
    group: Tensor | None = None,
    inverse: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """x rounded to its codes and back, in x's own dtype. `group` (B,) picks rows of scale and zero; no zero is 0."""
    if group is not None:
        scale = scale[group]
    moved = _moved(x, layout, inverse, offset)
    s = spread(scale, x, layout, granularity, group_size)
    if zero is None:
        return torch.round(moved * s.reciprocal()).clamp_(low, high).mul_(s).to(x.dtype)
    z = spread(zero if group is None else zero[group], x, layout, granularity, group_size)
    return encode_affine(moved, s, z, low, high).sub_(z).mul_(s).to(x.dtype)


def fake_quantize_dynamic(
    x: Tensor,
    bits: int,
    symmetric: bool,
    layout: str,
    granularity: str,
    group_size: int,
    inverse: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """x rounded with a scale taken from each sample as it comes."""
    moved = _moved(x, layout, inverse, offset)
    values = arrange(moved, layout, granularity, group_size)
    scale, zero = affine_from_range(values.amin(2), values.amax(2), bits, symmetric)
    low, high = levels(bits, symmetric)
    s = spread(scale, x, layout, granularity, group_size)
    z = spread(zero, x, layout, granularity, group_size)
    return encode_affine(moved, s, z, low, high).sub_(z).mul_(s).to(x.dtype)


def fake_quantize_codebook(
    x: Tensor,
    scale: Tensor,
    thresholds: Tensor,
    table: Tensor,
    layout: str,
    granularity: str,
    group_size: int,
    group: Tensor | None = None,
    inverse: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """x rounded to the nearest of `table * scale`; `thresholds` lie between neighbours of the table.

    Both have a row for each time group where groups have levels of their own.
    """
    if group is not None:
        scale = scale[group]
        if table.dim() == 2:
            thresholds, table = thresholds[group], table[group]
    s = spread(scale, x, layout, granularity, group_size)
    moved = _moved(x, layout, inverse, offset)
    if torch.compiler.is_compiling() and table.shape[-1] <= COMPARED:
        return (by_comparison(moved * s.reciprocal(), thresholds, table) * s).to(x.dtype)
    return decode_codebook(encode_codebook(moved, s, thresholds), table).mul_(s).to(x.dtype)


def rescale(x: Tensor, layout: str, inverse: Tensor, offset: Tensor | None = None) -> Tensor:
    """`x * inverse + offset`, both by channel: what stands before a quantizer until one takes it in."""
    return _moved(x, layout, inverse, offset).to(x.dtype)


def _moved(x: Tensor, layout: str, inverse: Tensor | None, offset: Tensor | None) -> Tensor:
    """x in fp32, its channels moved."""
    moved = x.float()
    if inverse is not None:
        moved = moved * spread(inverse.unsqueeze(0), x, layout, "channel", 0)
    if offset is not None:
        moved = moved + spread(offset.unsqueeze(0), x, layout, "channel", 0)
    return moved


def encode_codebook(x: Tensor, scale: Tensor, thresholds: Tensor) -> Tensor:
    """Indices into the table; scale broadcasts against x. Thresholds are (L-1,), or (B, L-1), a row for each sample."""
    values = (x.float() * scale.reciprocal()).contiguous()
    if thresholds.dim() == 1:
        return torch.bucketize(values, thresholds)
    rows = thresholds.expand(len(x), -1).contiguous()
    return torch.searchsorted(rows, values.reshape(len(x), -1)).reshape(x.shape)


def by_comparison(values: Tensor, thresholds: Tensor, table: Tensor) -> Tensor:
    """The levels that values are rounded to, as a search would find them, NaN's too: compared with every threshold.

    Compiled, that is one walk over the tensor, with vectors, where a search and a look-up take a walk each without.
    """
    shape = [-1] + [1] * (values.dim() - 1) if table.dim() == 2 else []
    first, *levels = (level.reshape(shape) for level in table.unbind(-1))
    found = first.expand_as(values)
    for threshold, level in zip(thresholds.unbind(-1), levels, strict=True):
        found = torch.where(values <= threshold.reshape(shape), found, level)
    return found


def decode_codebook(codes: Tensor, table: Tensor) -> Tensor:
    """What indices stand for, before any scale; the table is (L,), or (B, L), a row for each sample."""
    if table.dim() == 1:
        return table[codes]
    return table.expand(len(codes), -1).gather(1, codes.reshape(len(codes), -1)).reshape(codes.shape)


def affine_from_range(low: Tensor, high: Tensor, bits: int | Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a range, which is widened to hold 0. An empty range gets scale 1.

    >>> affine_from_range(torch.tensor(-1.0), torch.tensor(2.0), 2, False)
    (tensor(1.), tensor(1.))
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    bottom, top = levels(bits, symmetric)
    scale = torch.maximum(low / bottom, high / top) if symmetric else (high - low) / (top - bottom)
    # below this 1/scale overflows: such a tensor is zero for every purpose
    scale = torch.where(scale > 1e-30, scale, torch.ones_like(scale))
    zero = torch.zeros_like(scale) if symmetric else torch.round(-low * scale.reciprocal())
    return scale, zero


def time_group(t: Tensor, edges: Tensor) -> Tensor:
    """Which group of timesteps each sample is in: the number of edges that are <= t.

    >>> time_group(torch.tensor([0, 499, 500]), torch.tensor([250.0, 500.0]))
    tensor([0, 1, 2])
    """
    return torch.bucketize(t.to(edges.dtype), edges, right=True)


def pick(groups: Tensor, group: Tensor) -> Tensor:
    """A quantizer's own groups for samples grouped on finer edges: `groups[group]`."""
    return groups[group]
