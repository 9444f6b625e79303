"""Time the Fréchet distance at 2,048 dimensions against scipy's matrix square root: `python frechet_speed.py`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from qpass_evaluators.statistics.frechet import frechet
from qpass_evaluators.statistics.moments import Moments, moments_of
from scipy.linalg import sqrtm

DIMENSIONS = 2048


def gaussian(seed: int, count: int) -> Moments:
    """Moments of rows whose spread falls off like that of pooled Inception features."""
    source = np.random.default_rng(seed)
    turn = np.linalg.qr(source.standard_normal((DIMENSIONS, DIMENSIONS)))[0]
    spread = 0.3 / np.sqrt(1 + np.arange(DIMENSIONS))
    return moments_of(torch.from_numpy((source.standard_normal((count, DIMENSIONS)) * spread) @ turn + 0.4))


def by_scipy(a: Moments, b: Moments) -> float:
    apart = (a.mean - b.mean).numpy()
    s, t = a.covariance.numpy(), b.covariance.numpy()
    return float(apart @ apart + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t)).real)


def timed(work: Callable[[Moments, Moments], float], a: Moments, b: Moments) -> tuple[float, float]:
    """The value, and the best of three times in seconds."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        value = work(a, b)
        seconds.append(time.perf_counter() - started)
    return value, min(seconds)


def main() -> None:
    print(f"{DIMENSIONS} dimensions, {torch.get_num_threads()} threads")
    print(f"{'rows':>14}{'ours':>12}{'scipy':>12}{'ours s':>9}{'scipy s':>9}{'times':>7}{'apart':>10}")
    for ours, theirs in ((10_000, 10_000), (3_000, 10_000), (1_000, 10_000), (500, 500)):
        a, b = gaussian(0, ours), gaussian(1, theirs)
        value, seconds = timed(frechet, a, b)
        other, slower = timed(by_scipy, a, b)
        apart = abs(value - other) / abs(other)
        row = f"{value:12.6f}{other:12.6f}{seconds:9.2f}{slower:9.2f}{slower / seconds:7.1f}{apart:10.1e}"
        print(f"{ours:>7}{theirs:>7}{row}", flush=True)


if __name__ == "__main__":
    main()
