"""Is a tail a power law? Maximum likelihood fits above x_min, and the log-likelihood ratio between two of them.

The recipe is that of Clauset, Shalizi and Newman (0706.1062). Every distribution is that of x given x >= x_min.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import attrs
import torch
from torch import Tensor

Alternative = Literal["exponential", "half-normal", "log-normal"]
_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


@attrs.frozen(kw_only=True)
class Verdict:
    """The exponent of the power law, its log-likelihood ratio against the alternative, and that ratio's own scale.

    R > 0 favours the power law. `normalised` is R / (sigma sqrt n), sigma being the standard deviation of the terms
    that R sums: within about 2 of zero the sign means little.
    """

    alpha: float
    ratio: float
    normalised: float
    count: int


def exponent(x: Tensor, least: float) -> float:
    """alpha = 1 + n / sum ln(x / x_min), for x in double precision, all at least x_min."""
    total = float((x / least).log().sum())
    return 1 + len(x) / total if total > 0 else math.inf


def judge(values: Tensor, least: float, alternative: Alternative) -> Verdict:
    """The power law against the alternative, on the values that are at least x_min. Too few give a ratio of 0."""
    x = values.flatten().double()
    x = x[x >= least]
    alpha = exponent(x, least) if len(x) else math.inf
    # with fewer than two different values neither can be fitted
    if len(x) < 2 or not math.isfinite(alpha) or float(x.max()) == float(x.min()):
        return Verdict(alpha=alpha, ratio=0.0, normalised=0.0, count=len(x))
    terms = power_law(x, least, alpha) - _ALTERNATIVES[alternative](x, least)
    ratio, sigma = float(terms.sum()), float(terms.std(correction=0))
    normalised = ratio / (sigma * math.sqrt(len(x))) if sigma > 0 else 0.0
    return Verdict(alpha=alpha, ratio=ratio, normalised=normalised, count=len(x))


def power_law(x: Tensor, least: float, alpha: float) -> Tensor:
    """ln p(x) = ln((alpha - 1) / x_min) - alpha ln(x / x_min)."""
    terms: Tensor = math.log((alpha - 1) / least) - alpha * (x / least).log()
    return terms


def exponential(x: Tensor, least: float) -> Tensor:
    """ln p(x) = ln b - b (x - x_min) with b = 1 / (mean x - x_min)."""
    rate = 1 / (x.mean() - least)
    terms: Tensor = rate.log() - rate * (x - least)
    return terms


def half_normal(x: Tensor, least: float) -> Tensor:
    """ln p(x) of a normal distribution around 0, given x >= x_min, at its most likely width."""
    square = x.square().mean()

    def negative(at: Tensor) -> Tensor:
        inverse = torch.exp(-at[0])
        value: Tensor = 0.5 * square * inverse.square() + at[0] + torch.special.log_ndtr(-least * inverse)
        return value

    (log_sigma,) = _least(negative, torch.stack([0.5 * square.log()]))
    inverse = torch.exp(-log_sigma)
    tail = torch.special.log_ndtr(-least * inverse)
    terms: Tensor = -0.5 * (x * inverse).square() - log_sigma - _HALF_LOG_TAU - tail
    return terms


def log_normal(x: Tensor, least: float) -> Tensor:
    """ln p(x) where ln x is normally distributed, given x >= x_min, at its most likely mean and width."""
    logs = x.log()
    mean, square, edge = logs.mean(), logs.square().mean(), math.log(least)

    def negative(at: Tensor) -> Tensor:
        mu, inverse = at[0], torch.exp(-at[1])
        spread = 0.5 * (square - 2 * mu * mean + mu.square()) * inverse.square()
        value: Tensor = spread + at[1] + torch.special.log_ndtr(-(edge - mu) * inverse)
        return value

    start = torch.stack([mean, 0.5 * (square - mean.square()).clamp(min=1e-12).log()])
    mu, log_sigma = _least(negative, start)
    inverse = torch.exp(-log_sigma)
    tail = torch.special.log_ndtr(-(edge - mu) * inverse)
    terms: Tensor = -logs - 0.5 * ((logs - mu) * inverse).square() - log_sigma - _HALF_LOG_TAU - tail
    return terms


_ALTERNATIVES: dict[Alternative, Callable[[Tensor, float], Tensor]] = {
    "exponential": exponential,
    "half-normal": half_normal,
    "log-normal": log_normal,
}


def _least(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a smooth function of one or two numbers is least; the data is in its coefficients, so this is cheap."""
    at = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [at], lr=1.0, max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        with torch.enable_grad():
            value = function(at)
            value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    return at.detach()
