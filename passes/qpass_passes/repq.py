"""Quantize inputs by channel, then turn that into one scale for the layer by changing the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule

from qpass.kernels import reference
from qpass.manager import PassContext
from qpass.quantizer import QParams
from qpass.slots import slots
from qpass.spec import QuantSpec
from qpass_passes.equivalence.channel_factors import ChannelFactors, Move, globs, rows_seen
from qpass_passes.equivalence.channels import Channels
from qpass_passes.equivalence.rescale import after_norm, takes_offset
from qpass_passes.equivalence.ties import Tie


@attrs.frozen(kw_only=True)
class RepQ(ChannelFactors):
    """Scale reparameterization after norms (RepQ-ViT, Li et al., 2212.08254).

    With scales s_d and zero points z_d fitted to each channel, s~ and z~ their means: x' = x / r + b with
    r_d = s_d / s~ and b_d = (z_d - z~) s~, and weights and biases the other way. Rounding x' with the single (s~, z~)
    is rounding x channel by channel. The paper changes the norm's gamma and beta; where a norm is
    modulated, the linear that does so takes r and b in, and where others read what would change, the quantizer does.
    Convolutions that pad take r alone, as their padding is zero. `where = "everywhere"` goes beyond the paper, to
    layers whose input does not come from a norm. Inputs that are not rounded per tensor to evenly spaced levels are
    left alone; the paper's softmax outputs are `log-sqrt2` of `assign.softmax`. A channel's range is its
    least and greatest value, as in `absmax`.
    """

    name: ClassVar[str] = "repq"

    where: Literal["after-norm", "everywhere"] = attrs.field(
        default="after-norm",
        validator=v.in_(("after-norm", "everywhere")),
        metadata={"help": "which layers: those that read a norm, modulated or not, or all"},
    )
    layers: tuple[str, ...] = globs("globs of the layers to look at")
    rows: int = rows_seen()

    def wants(self, graph: GraphModule, tie: Tie) -> bool:
        """Evenly spaced inputs with one scale, after a norm unless all are wanted."""
        return _spec(graph, tie) is not None and (self.where == "everywhere" or after_norm(graph, tie))

    def choose(
        self, graph: GraphModule, ctx: PassContext, found: Sequence[Tie], channels: Channels
    ) -> tuple[Sequence[Move], Mapping[str, Any]]:
        """By ranges over all timesteps; static inputs without time groups are fitted by it, too."""
        moves = []
        for tie in found:
            spec = _spec(graph, tie)
            assert spec is not None
            low, high = channels.of(tie)
            factor, offset, params = layerwise(low.amin(0), high.amax(0), spec, shift=takes_offset(graph, tie))
            fits = spec.time_groups == 1 and not spec.dynamic
            moves.append(Move(factor=factor, offset=offset, params=params if fits else None))
        return moves, {}


def layerwise(low: Tensor, high: Tensor, spec: QuantSpec, *, shift: bool) -> tuple[Tensor, Tensor | None, QParams]:
    """r, b and the single scale and zero point of channels with these ranges; without `shift` there is no b."""
    scale, zero = reference.affine_from_range(low, high, spec.widest, spec.symmetric)
    alive = high > low
    if not bool(alive.any()):
        alive = torch.ones_like(alive)
    one, middle = scale[alive].mean(), zero[alive].mean().round()
    # a constant channel has no range to go by, so it is left where it is
    scale, zero = torch.where(alive, scale, one), torch.where(alive, zero, middle)
    factor = scale / one
    if shift and not spec.symmetric:
        return factor, (zero - middle) * one, _params(one, middle)
    found = reference.affine_from_range((low / factor).amin(), (high / factor).amax(), spec.widest, spec.symmetric)
    return factor, None, _params(*found)


def _params(scale: Tensor, zero: Tensor) -> QParams:
    return QParams(kind="affine", tensors={"scale": scale.reshape(1, 1), "zero": zero.reshape(1, 1)})


def _spec(graph: GraphModule, tie: Tie) -> QuantSpec | None:
    """What the tied inputs are rounded to, where that is the same for all, per tensor and evenly spaced."""
    inside = set(tie.calls)
    specs = {slot.spec for slot in slots(graph) if slot.node in inside and slot.index == 0}
    if len(specs) != 1:
        return None
    spec = specs.pop()
    return spec if spec.granularity == "tensor" and spec.kind == "affine" else None
