"""`pytest-benchmark compare`, given in this folder, shows quality beside the times: it reads hooks from here alone.

cd tests/benchmarks && pytest-benchmark --storage ../../.benchmarks compare
"""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark import plugin

from qpass.testing import with_figures

sys.path.insert(0, str(Path(__file__).parent))  # the scripts, whose parts the tests time


def pytest_benchmark_group_stats(config, benchmarks, group_by):
    """The usual groups, with figures in the names."""
    return with_figures(plugin.pytest_benchmark_group_stats(config, benchmarks, group_by))
