"""What is installed, loaded once; and the data of a recipe that uses most of what a recipe can say."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from qpass.plugins import Catalog, catalog

sys.path.insert(0, str(Path(__file__).parent))  # for `faults`

RECIPE = """
seed = 3
memory_budget = "1GB"

[model]
use = "cifar10-unet"

[sampling]
scheduler = "ddim"
steps = 20

[calibration]
use = "uniform-steps"
samples = 32

[[passes]]
use = "assign"
weight = "int4 channel"
input = "int8 tensor time:4"
keep = ["conv_out"]
rules = [{ match = "conv_in", weight = "int8 channel", input = "int8 tensor" }]

[[passes]]
use = "simulate"
weight = "absmax"
input = { use = "mse", norm = 2.0 }

[[evaluators]]
use = "drift"
samples = 8

[[evaluators]]
use = "size"

[presets.fast]
sampling.steps = 5
passes.simulate.rows = 16

[presets.transformer.model]
dtype = "bfloat16"
use = "cifar10-dit"
"""


@pytest.fixture(scope="session")
def known() -> Catalog:
    """Every plugin that is installed."""
    return catalog()


@pytest.fixture
def data() -> dict[str, Any]:
    """The recipe's tables, for each test its own."""
    return tomllib.loads(RECIPE)
