"""LSQ: the step size, and with LSQ+ the zero point, learned by gradient (1902.08153; 2004.09576)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from attrs import validators as v
from torch import Tensor

from qpass.kernels import reference
from qpass.quantizer import (
    Batches,
    QParams,
    Quantizer,
    Summary,
    bits_by_set,
    params_from_range,
    summarise,
)
from qpass.spec import QuantSpec
from qpass_passes.quantizers.mse import rounding_error

_LEARNED = ("scale", "zero")


def lsq(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    low: int | Tensor,
    high: int | Tensor,
    gradient_scale: float = 1.0,
) -> Tensor:
    """x rounded to its codes and back, bit for bit as the reference does, with LSQ's gradients.

    With v = x / s and code q = round(v), clipped to low - zero .. high - zero:

        d/dx     = 1 inside, 0 outside                              (equation 5)
        d/ds     = q - v inside, low - zero below, high - zero above (equation 3)
        d/dzero  = 0 inside, -s outside                             (LSQ+, with the offset counted in codes)

    The last two are times `gradient_scale`. All arguments broadcast against x; a zero point is rounded first, and
    None is 0. Everything is an ordinary torch operation, so it compiles and runs in double precision too.
    """
    s = scale_gradient(scale, gradient_scale)
    ratio = x.to(torch.promote_types(x.dtype, torch.float32)) * s.reciprocal()
    bottom: int | Tensor = low
    top: int | Tensor = high
    if zero is not None:
        z = round_through(scale_gradient(zero, gradient_scale))
        bottom, top = low - z, high - z
    # clipping first rounds to the same codes, as the bounds are whole; and it is where the gradients come from
    return (round_through(reference.clip(ratio, bottom, top)) * s).to(x.dtype)


def round_through(x: Tensor) -> Tensor:
    """x rounded, ties to even; the gradient passes as if it were not (the straight-through estimator).

    >>> round_through(torch.tensor([0.5, 1.2, -1.7]))
    tensor([ 0.,  1., -2.])
    """
    return x.detach().round() + (x - x.detach())


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by a factor."""
    return x if factor == 1.0 else x.detach() + (x - x.detach()) * factor


def gradient_scale(count: float, high: float) -> float:
    """g = 1 / sqrt(N Q_P), section 2.2: N values share the step, whose highest code is Q_P.

    >>> gradient_scale(25, 4)
    0.1
    """
    return float((count * high) ** -0.5)


def through_codebook(
    x: Tensor, scale: Tensor, thresholds: Tensor, table: Tensor, gradient_scale: float = 1.0
) -> Tensor:
    """The same for a codebook: x to the nearest of `table * scale`, with LSQ's gradients for x and scale.

    q is then the table's entry, and the range goes from its first to its last.
    """
    s = scale_gradient(scale, gradient_scale)
    ratio = x.to(torch.promote_types(x.dtype, torch.float32)) * s.reciprocal()
    entry = table[torch.bucketize(ratio.detach().contiguous(), thresholds)]
    kept = ratio.clamp(table[0], table[-1])
    return ((entry + (kept - kept.detach())) * s).to(x.dtype)


def learned_fake_quantize(
    x: Tensor, spec: QuantSpec, tensors: Mapping[str, Tensor], layout: str, group: Tensor | None = None
) -> Tensor:
    """`qpass.quantizer.fake_quantize` with gradients: LSQ's for x, `scale` and `zero`.

    A dynamic scale is computed and not learned: there the gradient passes straight through to x.
    """
    if spec.dynamic:
        rounded = reference.fake_quantize_dynamic(
            x.detach(), spec.widest, spec.symmetric, layout, spec.granularity, spec.group_size
        )
        return rounded + (x - x.detach())
    grain = (x, layout, spec.granularity, spec.group_size)
    scale = tensors["scale"]
    batch = 1 if layout == reference.WEIGHT else len(x)
    count = x.numel() / (batch * scale.shape[1])
    picked = scale if group is None else scale[group]
    s = reference.spread(picked, *grain)
    if spec.kind == "codebook":
        return through_codebook(x, s, tensors["thresholds"], tensors["table"], gradient_scale(count, 1.0))
    bits: int | Tensor = spec.widest
    if isinstance(spec.bits, tuple):
        bits = torch.tensor(spec.bits, device=x.device).reshape([-1] + [1] * (x.dim() - 1))
    low, high = reference.levels(bits, spec.symmetric)
    zero = None
    if not spec.symmetric:
        zero = reference.spread(tensors["zero"] if group is None else tensors["zero"][group], *grain)
    # where channels have bits of their own the widest stands for all: the factor sets a pace, not an optimum
    top = reference.levels(spec.widest, spec.symmetric)[1]
    return lsq(x, s, zero, low, high, gradient_scale(count, float(top)))


@attrs.frozen(kw_only=True)
class LearnedStep(Quantizer):
    """LSQ's step size, learned with Adam so that the squared rounding error of the values is least.

    It starts from LSQ's 2 mean|x| / sqrt(Q_P), or from what `init` fits, and its gradient is LSQ's with the zero
    point's as in LSQ+. The paper learns the step together with the network, on its loss; here the values are all
    there is. They are streamed into histograms once (small tensors are kept as they are), and the steps are taken on
    those. Our choices: the step's logarithm is learned; a zero point starts where the clipped share of
    the range is equal on both sides; a set that ends with more error than it began with keeps its start, and one that
    the full range serves better takes that, as where a few values lie far outside the paper's first step.
    """

    name: ClassVar[str] = "learned-step"
    iterations: int = attrs.field(default=200, validator=v.ge(0), metadata={"help": "steps of Adam"})
    lr: float = attrs.field(
        default=0.01,
        validator=v.gt(0.0),
        metadata={"help": "learning rate of the step's logarithm; ten times that for the zero point"},
    )
    init: Quantizer | None = attrs.field(
        default=None,
        validator=v.optional(v.instance_of(Quantizer)),  # type: ignore[type-abstract]
        metadata={"help": 'the quantizer it starts from, like "mse"; by default LSQ\'s own formula'},
    )

    def fit(self, batches: Batches, spec: QuantSpec) -> QParams:
        """Parameters with the least squared error that the gradient finds, for each parameter set by itself."""
        summary = summarise(batches, spec, exact_below=1 << 18, most=1 << 20)  # it is gone through many times
        first = initial(summary, spec) if self.init is None else self.init.fit(batches, spec)
        return learn(summary, first, spec, self.iterations, self.lr)


def initial(summary: Summary, spec: QuantSpec) -> QParams:
    """Scale 2 mean|x| / sqrt(Q_P), section 2.1; a codebook, to which that does not apply, gets its full range."""
    full = params_from_range(summary.low, summary.high, spec)
    if spec.kind == "codebook":
        return full
    top = torch.as_tensor(_levels(spec, full.tensors["scale"])[1], device=summary.low.device).double()
    counts = summary.counts.double()
    mean = (summary.values.double().abs() * counts).sum(2) / counts.sum(2)
    scale = (2 * mean / top.sqrt()).float()
    scale = torch.where(scale > 1e-30, scale, full.tensors["scale"])
    if spec.symmetric:
        return QParams(kind="affine", tensors={"scale": scale, "zero": torch.zeros_like(scale)})
    low, high_end = summary.low.float().clamp(max=0.0), summary.high.float().clamp(min=0.0)
    held = (top.float() * scale / (high_end - low).clamp(min=1e-30)).clamp(max=1.0)
    zero = (-low * held * scale.reciprocal()).round()
    return QParams(kind="affine", tensors={"scale": scale, "zero": reference.clip(zero, 0, top.float())})


def learn(summary: Summary, first: QParams, spec: QuantSpec, iterations: int, lr: float) -> QParams:
    """Adam on sum count * (x - Q(x))^2 from the first parameters on; each set keeps the best of start, end and the full
    range."""
    unit = first.tensors["scale"]
    values = summary.values / unit.unsqueeze(2)
    weights = summary.counts / summary.counts.sum(2, keepdim=True)
    with torch.enable_grad():
        # the logarithm keeps a step positive, and makes the pace the same for sets of any size
        log = torch.zeros_like(unit).requires_grad_()
        groups = [{"params": [log], "lr": lr}]
        zero = None
        if spec.kind == "affine" and not spec.symmetric:
            zero = first.tensors["zero"].clone().requires_grad_()
            groups.append({"params": [zero], "lr": 10 * lr})  # it counts codes
        optimizer = torch.optim.Adam(groups)
        for _ in range(iterations):
            optimizer.zero_grad()
            rounded = _rounded(values, log.exp(), zero, first, spec)
            ((rounded - values).square() * weights).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if zero is not None:  # 0 stays on the grid, as padding and integer kernels need
                zero.data = reference.clip(zero.data, *_levels(spec, unit))
    end = dict(first.tensors)
    end["scale"] = (log.detach().exp() * unit).float()
    if zero is not None:
        end["zero"] = zero.detach().round()
    full = params_from_range(summary.low, summary.high, spec).tensors
    kept, least = first, rounding_error(summary, first, spec, 2.0)
    for other in (
        end,
        {part: full.get(part, tensor) for part, tensor in first.tensors.items() if part in _LEARNED},
    ):
        rival = QParams(kind=first.kind, tensors={**first.tensors, **other})
        error = rounding_error(summary, rival, spec, 2.0)
        tensors = {
            part: torch.where(error < least, rival.tensors[part], tensor) if part in _LEARNED else tensor
            for part, tensor in kept.tensors.items()
        }
        kept, least = QParams(kind=first.kind, tensors=tensors), torch.minimum(error, least)
    return kept


def _rounded(values: Tensor, scale: Tensor, zero: Tensor | None, first: QParams, spec: QuantSpec) -> Tensor:
    """Values (G, K, V) and scale in units of the first scale: rounded with what is being learned."""
    if first.kind == "codebook":
        return through_codebook(values, scale.unsqueeze(2), first.tensors["thresholds"], first.tensors["table"])
    low, high = _levels(spec, scale)
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        low, high = low.unsqueeze(1), high.unsqueeze(1)
    return lsq(values, scale.unsqueeze(2), None if zero is None else zero.unsqueeze(2), low, high)


def _levels(spec: QuantSpec, scale: Tensor) -> tuple[int | Tensor, int | Tensor]:
    return reference.levels(bits_by_set(spec, scale), spec.symmetric)
