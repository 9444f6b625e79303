"""Every pass that is installed, a stranger's too: how long it takes, and how good a model it makes, side by side.

`tox -e bench -- -k passes --benchmark-autosave`; the next time `--benchmark-compare` puts both sessions side by side.
"""

from __future__ import annotations

import attrs
import pytest

from qpass.plugins import catalog
from qpass.testing.passes import required

PASSES = catalog().classes["passes"]
MODELS = ("cifar10-unet", "cifar10-dit")
# what keeps a session short, for passes that learn
SHORT = {"iterations": 20, "rows": 16}


def short(cls):
    """An instance that does little; skipped where an option must be given."""
    if missing := required(cls):
        pytest.skip(f"{cls.name} has no default for {', '.join(missing)}")
    return cls(**{f.name: SHORT[f.name] for f in attrs.fields(cls) if f.name in SHORT})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PASSES)
def test_rewrite(benchmark_pass, name, model):
    """Seconds that the pass takes, and what it allocates."""
    benchmark_pass.rewrite(short(PASSES[name]), model)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PASSES)
def test_denoise(benchmark_pass, name, model):
    """Seconds of one call of the model that it makes, quantized, at batch 8."""
    benchmark_pass.denoise(short(PASSES[name]), model)
