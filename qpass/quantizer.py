"""Parameters of a quantizer, the pure functions that use them, and the contract of those that fit them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from qpass.kernels import reference
from qpass.spec import LOGS, QuantSpec

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@attrs.frozen(kw_only=True, eq=False)
class QParams:
    """Fitted parameters, by name.

    affine: `scale`, `zero`, both (G, K). codebook: `scale` (G, K), `thresholds` (L-1,), `table` (L,), or (G, L-1) and
    (G, L) where time groups have levels of their own.
    With time groups also `edges` (G-1,): group g holds the timesteps below edges[g].
    """

    kind: Literal["affine", "codebook"]
    tensors: Mapping[str, Tensor]


class Quantizer(ABC):
    """A way to fit parameters to values. Subclasses are frozen attrs classes of their options."""

    name: ClassVar[str]

    @abstractmethod
    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """Parameters for values streamed as (values (B, K, M), time group (B,)) pairs.

        `batches()` may be called again for another pass over the same data. The result has
        `spec.time_groups` rows; a group that saw nothing takes the parameters of all groups together.
        """


def quantize(
    x: Tensor, spec: QuantSpec, tensors: Mapping[str, Tensor], layout: str, group: Tensor | None = None
) -> Tensor:
    """Integer codes of x: uint8, or int8 where the spec is symmetric."""
    scale = _spread(tensors["scale"], x, spec, layout, group)
    if spec.kind == "codebook":
        return reference.encode_codebook(x, scale, _rows(tensors["thresholds"], group)).to(torch.uint8)
    low, high = reference.levels(_bits(spec, x), spec.symmetric)
    zero = _spread(tensors["zero"], x, spec, layout, group)
    codes = reference.encode_affine(x, scale, zero, low, high)
    return codes.to(torch.int8 if spec.symmetric else torch.uint8)


def dequantize(
    codes: Tensor, spec: QuantSpec, tensors: Mapping[str, Tensor], layout: str, group: Tensor | None = None
) -> Tensor:
    """The fp32 values that codes stand for."""
    scale = _spread(tensors["scale"], codes, spec, layout, group)
    if spec.kind == "codebook":
        return reference.decode_codebook(codes.long(), _rows(tensors["table"], group)) * scale
    return (codes.float() - _spread(tensors["zero"], codes, spec, layout, group)) * scale


def fake_quantize(
    x: Tensor, spec: QuantSpec, tensors: Mapping[str, Tensor], layout: str, group: Tensor | None = None
) -> Tensor:
    """x rounded to its codes and back, in x's dtype: a function of every tensor in `tensors`."""
    if spec.dynamic:
        return reference.fake_quantize_dynamic(
            x, spec.widest, spec.symmetric, layout, spec.granularity, spec.group_size
        )
    return dequantize(quantize(x, spec, tensors, layout, group), spec, tensors, layout, group).to(x.dtype)


def _rows(levels: Tensor, group: Tensor | None) -> Tensor:
    """Levels that all share, or each sample's own."""
    if levels.dim() == 1:
        return levels
    return levels if group is None else levels[group]


def _bits(spec: QuantSpec, x: Tensor) -> int | Tensor:
    """One bit width, or one for each output channel, shaped to broadcast against a weight."""
    if isinstance(spec.bits, int):
        return spec.bits
    return torch.tensor(spec.bits, device=x.device).reshape([-1] + [1] * (x.dim() - 1))


def _spread(values: Tensor, x: Tensor, spec: QuantSpec, layout: str, group: Tensor | None) -> Tensor:
    rows = values if group is None else values[group]
    return reference.spread(rows, x, layout, spec.granularity, spec.group_size)


@attrs.frozen(kw_only=True, eq=False)
class Summary:
    """Values by time group and parameter set: the range, and (value, count) pairs, all (G, K, ...)."""

    low: Tensor
    high: Tensor
    values: Tensor
    counts: Tensor


@attrs.frozen(kw_only=True, eq=False)
class Ranges:
    """The least and greatest value of each (G, K), and which time groups saw any; the others take them all."""

    low: Tensor
    high: Tensor
    seen: Tensor
    batches: int
    total: int


def ranges(batches: Batches, groups: int) -> Ranges:
    """Stream values into ranges."""
    low = high = seen = None
    total = count = 0
    for values, group in batches():
        values = values.float()
        if low is None or high is None or seen is None:
            shape = (groups, values.shape[1])
            low = torch.full(shape, torch.inf, device=values.device)
            high = torch.full(shape, -torch.inf, device=values.device)
            seen = torch.zeros(groups, dtype=torch.bool, device=values.device)
        index = group.reshape(-1, 1).expand(-1, values.shape[1])
        low.scatter_reduce_(0, index, values.amin(2), "amin")
        high.scatter_reduce_(0, index, values.amax(2), "amax")
        seen[group] = True
        total, count = total + values.numel(), count + 1
    if low is None or high is None or seen is None:
        raise ValueError("nothing to fit: no values were recorded")
    low[~seen], high[~seen] = low[seen].amin(0), high[seen].amax(0)
    _check_finite(low, high)
    return Ranges(low=low, high=high, seen=seen, batches=count, total=total)


def refuse_negative(found: Ranges, spec: QuantSpec) -> None:
    """A `ValueError` where a format without levels below 0 would make 0 of values that are not close to it."""
    if spec.symmetric or spec.format not in (*LOGS, "levels"):
        return
    # what lies nearer to 0 than the first threshold is 0 with a sign too, and a thousandth may be noise
    close = max(float(codebook(spec, found.low.device)[1][0]), 1e-3)
    if bool((found.low < -close * torch.maximum(found.low.abs(), found.high.abs())).any()):
        raise ValueError(
            f"{str(spec)!r} has no levels below 0, and values down to {float(found.low.amin()):.3g} were recorded; "
            f"write {str(attrs.evolve(spec, symmetric=True))!r}"
        )


def summarise(
    batches: Batches,
    spec: QuantSpec,
    bins: int = 4096,
    exact_below: int = 1 << 22,
    most: int = 1 << 24,
    crowd: int = 1 << 10,
) -> Summary:
    """Stream values into ranges, then into histograms; a small single-group set is kept as it is.

    Small is `exact_below` values, and as many as `crowd` for each bin that the histogram would have.
    Where there are many sets they have fewer bins, 256 at least, so that all together are `most`.
    """
    found = ranges(batches, spec.time_groups)
    refuse_negative(found, spec)
    low, high = found.low, found.high
    small = found.total <= min(exact_below, crowd * bins * low.numel())
    if spec.time_groups == 1 and found.batches == 1 and small:
        only = next(iter(batches()))[0].float()
        # (B, K, M) as (1, K, B * M)
        kept = only.transpose(0, 1).reshape(1, only.shape[1], -1)
        return Summary(low=low, high=high, values=kept, counts=torch.ones_like(kept))
    bins = max(256, min(bins, most // low.numel()))
    width = ((high - low) / bins).clamp(min=1e-30)
    counts = torch.zeros(low.numel() * bins, device=low.device)
    sets = torch.arange(low.shape[1], device=low.device)
    for whole, groups in batches():
        # a few rows at a time: places in the histogram take several times what the values do
        few = max(1, (1 << 21) * len(whole) // whole.numel())
        for values, group in zip(torch.split(whole, few), torch.split(groups, few), strict=True):
            rows = group.reshape(-1, 1) * low.shape[1] + sets
            place = (values.float() - low[group].unsqueeze(2)) / width[group].unsqueeze(2)
            flat = rows.unsqueeze(2) * bins + place.long().clamp_(0, bins - 1)
            counts += torch.bincount(flat.reshape(-1), minlength=counts.numel())
    counts = counts.reshape(*low.shape, bins)
    centres = low.unsqueeze(2) + (torch.arange(bins, device=low.device) + 0.5) * width.unsqueeze(2)
    if not found.seen.all():
        # their range is that of all groups together, whose own bins are finer: each falls into the one of its centre
        common = (~found.seen).nonzero()[0, 0]
        place = ((centres[found.seen] - low[common].unsqueeze(1)) / width[common].unsqueeze(1)).long()
        every = torch.zeros_like(counts[common])
        for seen, where in zip(counts[found.seen], place.clamp_(0, bins - 1), strict=True):
            every.scatter_add_(1, where, seen)
        counts[~found.seen] = every
    return Summary(low=low, high=high, values=centres, counts=counts)


def params_from_range(low: Tensor, high: Tensor, spec: QuantSpec) -> QParams:
    """Parameters that make exactly this range, (G, K), representable; a `ValueError` where it is not finite."""
    _check_finite(low, high)
    if spec.kind == "codebook":
        table, thresholds = codebook(spec, low.device)
        scale = torch.maximum(low.abs(), high.abs()).float()
        scale = torch.where(scale > 1e-30, scale, torch.ones_like(scale))
        return QParams(kind="codebook", tensors={"scale": scale, "thresholds": thresholds, "table": table})
    scale, zero = reference.affine_from_range(low, high, bits_by_set(spec, low), spec.symmetric)
    return QParams(kind="affine", tensors={"scale": scale, "zero": zero})


def _check_finite(low: Tensor, high: Tensor) -> None:
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError("the recorded values hold infinities or NaN, so no range fits them")


def bits_by_set(spec: QuantSpec, scale: Tensor) -> int | Tensor:
    """The bit width, or one for each parameter set, (K,), where output channels differ; `scale` is (G, K)."""
    if isinstance(spec.bits, int):
        return spec.bits
    # parameter sets of one output channel stand together
    per = scale.shape[1] // len(spec.bits)
    return torch.tensor(spec.bits, device=scale.device).repeat_interleave(per)


def codebook(spec: QuantSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """The levels of a non-uniform format, ascending within [-1, 1], and the thresholds between them.

    >>> codebook(QuantSpec(format="log2", bits=2), torch.device("cpu"))[0]
    tensor([0.0000, 0.2500, 0.5000, 1.0000])
    """
    if spec.format in LOGS:
        return log_codebook(spec, 0.5 if spec.format == "log-sqrt2" else 1.0, device)
    if spec.format == "levels":
        low, high = reference.levels(spec.widest, spec.symmetric)
        table = torch.arange(int(low), int(high) + 1, dtype=torch.float64) / max(int(high), -int(low))
    else:
        table = torch.tensor(_NF4, dtype=torch.float64) if spec.format == "nf4" else _fp8(spec.format)
    thresholds = (table[1:] + table[:-1]) / 2
    return table.float().to(device), thresholds.float().to(device)


def log_codebook(spec: QuantSpec, step: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels 0 and base^-k for k = 0, 1, ..., where base = 2^step: one level for every code, signed if symmetric.

    Rounding happens in the exponent: thresholds are at base^-(k + 1/2), and what is below the last one becomes 0.
    Many codes of a large base would be too small for fp32; there are then fewer levels than codes.

    >>> log_codebook(QuantSpec(format="log-sqrt2", bits=2), 0.5, torch.device("cpu"))[0]
    tensor([0.0000, 0.5000, 0.7071, 1.0000])
    """
    bits = spec.widest - spec.symmetric
    exponents = torch.arange(2**bits - 2, -1, -1, dtype=torch.float64) * step
    exponents = exponents[exponents <= _LEAST_EXPONENT]
    powers = torch.exp2(-exponents)
    edges = torch.exp2(-(exponents + step / 2))
    if spec.symmetric:
        table = torch.cat([-powers.flip(0), torch.zeros(1), powers])
        thresholds = torch.cat([-edges.flip(0), edges])
    else:
        table, thresholds = torch.cat([torch.zeros(1), powers]), edges
    return table.float().to(device), thresholds.float().to(device)


_LEAST_EXPONENT = 96.0  # well above the least normal number, 2^-126, so that a scale has room


def _fp8(name: str) -> Tensor:
    dtype = {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}[name]
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).to(torch.float64)
    finite: Tensor = torch.unique(every[torch.isfinite(every)])
    return finite / finite.amax()


# the 16 quantiles of a normal distribution, QLoRA appendix E (2305.14314)
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
