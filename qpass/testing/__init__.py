"""What the tests of a plugin can use: a plugin of pytest, which finds it wherever qpass is installed.

    def test_speed(benchmark_pass):
        benchmark_pass.rewrite(MyPass(strength=3))

Nothing of it is imported but by pytest, and nothing slow before a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from qpass.testing.passes import PassBenchmark, Workshop

SHOWN = {
    "sqnr_db": "SQNR {:.2f} dB",
    "psnr_db": "PSNR {:.2f} dB",
    "packed_mb": "{:.2f} MB",
    "peak_memory_mb": "peak {:.0f} MB",
}


@pytest.fixture(scope="session")
def _workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """What benchmarks of one session share: each model's teacher, and what was found out about it."""
    from qpass.testing.passes import Workshop

    return Workshop(folder=tmp_path_factory.mktemp("benchmark_pass"))


@pytest.fixture
def benchmark_pass(request: pytest.FixtureRequest, _workshop: Workshop) -> PassBenchmark:
    """Times a pass (`.rewrite(step)`), or one call of the model that it makes (`.denoise(step)`).

    Both run on a small model that ships, or on the adapter given as `model`, with what the pass needs before it.
    Beside the times, `benchmark.extra_info` keeps output SQNR and PSNR against the teacher, MB and peak memory. A
    pass that cannot run alone is skipped, with the reason.
    """
    from qpass.testing.passes import PassBenchmark

    if not request.config.pluginmanager.hasplugin("benchmark"):
        pytest.fail("benchmark_pass needs pytest-benchmark: pip install pytest-benchmark", pytrace=False)
    return PassBenchmark(request=request, workshop=_workshop)


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_benchmark_group_stats() -> Generator[None, Any, Any]:
    """Show the figures beside the times, those of an earlier session with `--benchmark-compare` too."""
    groups = yield
    return with_figures(groups)


def with_figures(groups: Iterable[tuple[Any, Any]]) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Groups of benchmarks in which the names tell quality, size and memory."""
    return [(group, [_told(dict(benchmark)) for benchmark in benchmarks]) for group, benchmarks in groups]


def _told(benchmark: dict[str, Any]) -> dict[str, Any]:
    figures: Mapping[str, Any] = benchmark.get("extra_info") or {}
    shown = [text.format(figures[key]) for key, text in SHOWN.items() if figures.get(key) is not None]
    if shown and not benchmark["name"].endswith(shown[-1]):  # a conftest may have done it before us
        benchmark["name"] += ": " + ", ".join(shown)
    return benchmark
