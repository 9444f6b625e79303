"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SCALED = frozenset({"kB", "MB", "GB", "KiB", "MiB", "GiB", "ms", "us", "µs", "ns", "s", "dB", "%", "x", "×"})


def number(value: float | None, unit: str = "") -> str:
    """Four significant digits, and a prefix where the number is large and its unit has none; no unit is added.

    >>> number(1234567890.0), number(23.41234), number(0.5), number(12345.6, "MB"), number(None)
    ('1.235 G', '23.41', '0.5', '12,346', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 1e5 and unit not in _SCALED:
        scale, prefix = next(pair for pair in _PREFIXES if size >= pair[0])
        return f"{value / scale:.4g} {prefix}" if size < 1e16 else f"{value:.3e}"
    if size >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-4 or size == 0 else f"{value:.2e}"


def aligned(values: Sequence[float]) -> tuple[str, ...]:
    """The numbers of one column, with as many decimals as give the largest four digits.

    >>> aligned([9.5, 28.125])
    ('9.50', '28.12')
    """
    largest = max((abs(value) for value in values), default=0.0)
    if not 1e-3 <= largest < 1e5:
        return tuple(number(value) for value in values)
    decimals = max(0, 3 - math.floor(math.log10(largest)))
    return tuple(f"{value:.{decimals}f}" for value in values)


def quantity(value: float | None, unit: str) -> str:
    """The number with its unit.

    >>> quantity(1.5e9, "MACs"), quantity(4.26, "ms"), quantity(3.9, "x"), quantity(0.0042, "s")
    ('1.5 GMACs', '4.26 ms', '3.9×', '4.2 ms')
    """
    if unit == "s":
        return duration(value)
    text = number(value, unit)
    if text == NONE or not unit:
        return text
    if unit in ("x", "×"):
        return f"{text}×"
    return text + unit if text[-1].isalpha() else f"{text} {unit}"


def duration(seconds: float | None) -> str:
    """A length of time.

    >>> duration(0.0421), duration(8.25), duration(754.0), duration(8000)
    ('42.1 ms', '8.2 s', '12 min 34 s', '2 h 13 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if abs(seconds) < 1:
        return f"{number(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
