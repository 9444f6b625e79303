"""Learning one block, the engine's way and as a plain loop, at a size that takes seconds: `tox -e bench -- -k engine`.

At full size, with the ratio of both and what each part of it is due to: engine_table.py; memory: engine_memory.py.
"""

from __future__ import annotations

import attrs
import pytest
from engine_table import BLOCKS, OURS, ours, plain, prepared
from qpass_passes.reconstruction import Objective

ROWS, ITERATIONS = 256, 100


@pytest.fixture(scope="module", params=BLOCKS)
def block(request):
    return prepared(request.param, ROWS)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_engine(benchmark, block, precision):
    """So many iterations of the preset fast; the loss is that of hard rounding, on rows it did not learn from."""
    objective = attrs.evolve(Objective(**OURS), iterations=ITERATIONS, precision=precision, settle=False)
    loss, _ = benchmark.pedantic(ours, (*block, objective), rounds=3)
    benchmark.extra_info["loss"] = loss


def test_engine_plain_loop(benchmark, block):
    """As many iterations of the plain loop, at its own batch and rate."""
    loss, _ = benchmark.pedantic(plain, (*block, ITERATIONS), rounds=3)
    benchmark.extra_info["loss"] = loss
