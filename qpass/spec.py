"""How one tensor is quantized, in words a recipe can hold. Nothing here needs torch.

A quantizer's text: `<int2..int8|fp8-e4m3|fp8-e5m2|nf4|log2[:BITS]|log-sqrt2[:BITS]|log[:BITS]|levels[:BITS]>
<tensor|channel|token|group:N> [sym|asym] [dynamic] [time:G[:even|:range]]`. The levels of log2 and log-sqrt2 are powers
of 2 and of its root; those of log are powers of what the quantizer that fits them chooses, and of 2 where it has no
choice; those of levels are any that a pass chose, for each time group its own, and evenly spaced where none did. Those
four have no level below 0 unless they are `sym`: fitted to values that go below it, they are refused. Time groups are
runs of as many sampled timesteps each; with `even`, equal stretches of time; with `range`, runs of timesteps whose
ranges are alike, for each tensor its own.
"""

from __future__ import annotations

import re
from typing import Literal

import attrs
from attrs import validators as v

Granularity = Literal["tensor", "channel", "token", "group"]
TimeSplit = Literal["steps", "even", "range"]
GRAMMAR = (
    "<int2..int8|fp8-e4m3|fp8-e5m2|nf4|log2[:BITS]|log-sqrt2[:BITS]|log[:BITS]|levels[:BITS]> "
    "<tensor|channel|token|group:N> [sym|asym] [dynamic] [time:G[:even|:range]]"
)
LOGS = ("log2", "log-sqrt2", "log")
_CODEBOOK_BITS = {"fp8-e4m3": 8, "fp8-e5m2": 8, "nf4": 4}


@attrs.frozen(kw_only=True)
class QuantSpec:
    """One tensor's number format, and how many sets of parameters it gets.

    `bits` is one number, or one per output channel of a weight.
    """

    format: Literal["int", "fp8-e4m3", "fp8-e5m2", "nf4", "log2", "log-sqrt2", "log", "levels"] = "int"
    bits: int | tuple[int, ...] = 8
    granularity: Granularity = attrs.field(
        default="tensor", validator=v.in_(("tensor", "channel", "token", "group"))
    )
    group_size: int = attrs.field(default=0, validator=v.ge(0))
    symmetric: bool = False
    dynamic: bool = False
    time_groups: int = attrs.field(default=1, validator=v.ge(1))
    time_split: TimeSplit = attrs.field(default="steps", validator=v.in_(("steps", "even", "range")))

    def __attrs_post_init__(self) -> None:
        for bits in self.bits if isinstance(self.bits, tuple) else (self.bits,):
            if not 2 <= bits <= 8:
                raise ValueError(f"bits must be 2 to 8, not {bits}")
        if (self.granularity == "group") != (self.group_size > 0):
            raise ValueError("a group needs a size of at least 1 and only a group has one: group:N")
        if self.dynamic and self.time_groups > 1:
            raise ValueError("a dynamic scale is computed from each sample, so it takes no time groups")
        if self.time_groups == 1 and self.time_split != "steps":
            raise ValueError(f"time:1 is a single group, and ':{self.time_split}' says how several are made")
        if self.dynamic and self.format != "int":
            raise ValueError(f"only int formats can be dynamic, not {self.format}")

    @property
    def kind(self) -> Literal["affine", "codebook"]:
        return "affine" if self.format == "int" else "codebook"

    @property
    def widest(self) -> int:
        """The largest bit width, which is what the codes are stored in."""
        return max(self.bits) if isinstance(self.bits, tuple) else self.bits

    def __str__(self) -> str:
        if self.format == "int":
            head = f"int{self.widest}"
        elif self.format in (*LOGS, "levels"):
            head = f"{self.format}:{self.widest}"
        else:
            head = self.format
        parts = [head, self.granularity + (f":{self.group_size}" if self.group_size else "")]
        parts.append("sym" if self.symmetric else "asym")
        if self.dynamic:
            parts.append("dynamic")
        if self.time_groups > 1:
            parts.append(
                f"time:{self.time_groups}" + (f":{self.time_split}" if self.time_split != "steps" else "")
            )
        return " ".join(parts)


@attrs.frozen(kw_only=True)
class NodeSpec:
    """What `assign` decided for one node, and how the node is carried out by now."""

    weight: QuantSpec | None = None
    inputs: tuple[QuantSpec | None, ...] = ()
    execution: Literal["float", "simulated", "integer"] = "float"


def parse_spec(text: str, *, symmetric: bool) -> QuantSpec:
    """Read a quantizer's text; `symmetric` holds where it says neither sym nor asym.

    >>> str(parse_spec("int4 group:64 time:10", symmetric=True))
    'int4 group:64 sym time:10'
    >>> parse_spec("int8 tensor time:5:range", symmetric=False).time_split
    'range'
    """
    words = text.split()
    if len(words) < 2:
        raise ValueError(f"{text!r} is not a quantizer; write {GRAMMAR}")
    head, grain, *rest = words
    if match := re.fullmatch(r"int([2-8])", head):
        fields: dict[str, object] = {"format": "int", "bits": int(match[1])}
    elif match := re.fullmatch(r"(log2|log-sqrt2|log|levels)(?::([2-8]))?", head):
        fields = {"format": match[1], "bits": int(match[2] or 4)}
    elif head in _CODEBOOK_BITS:
        fields = {"format": head, "bits": _CODEBOOK_BITS[head]}
    else:
        raise ValueError(f"{head!r} in {text!r} is not a number format; write {GRAMMAR}")
    if match := re.fullmatch(r"group:([1-9]\d*)", grain):
        fields |= {"granularity": "group", "group_size": int(match[1])}
    elif grain in ("tensor", "channel", "token"):
        fields["granularity"] = grain
    else:
        raise ValueError(f"{grain!r} in {text!r} is not a granularity; write {GRAMMAR}")
    fields["symmetric"] = symmetric
    for word in rest:
        if word in ("sym", "asym"):
            fields["symmetric"] = word == "sym"
        elif word == "dynamic":
            fields["dynamic"] = True
        elif match := re.fullmatch(r"time:([1-9]\d*)(?::(even|range))?", word):
            fields |= {"time_groups": int(match[1]), "time_split": match[2] or "steps"}
        else:
            raise ValueError(f"{word!r} in {text!r} means nothing here; write {GRAMMAR}")
    return QuantSpec(**fields)  # type: ignore[arg-type]
