"""How long things take, beside the quality they keep: `tox -e bench`, then `pytest-benchmark compare`."""

from __future__ import annotations

import copy

import pytest
import torch
from qpass_models.zoo import Cifar10DiT, Cifar10UNet
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.simulate import Simulate

from qpass.graph import trace
from qpass.manager import PassContext, PassManager
from qpass.plugins import catalog
from qpass.sampling import Sampling

MODELS = {"cifar10-unet": Cifar10UNet(), "cifar10-dit": Cifar10DiT()}


@pytest.fixture(scope="module", params=MODELS)
def teacher(request):
    """A zoo model, eager and traced."""
    adapter = MODELS[request.param]
    module = adapter.load()
    return adapter, module, trace(module, adapter.example(), call=adapter.call, dynamic=adapter.dynamic())


@pytest.fixture(scope="module")
def simulated(teacher):
    """The same at W8A8, simulated."""
    adapter, _, graph = teacher
    ctx = PassContext(
        model=adapter,
        reference=graph,
        sampling=Sampling(),
        calibration=UniformSteps(samples=16),
        catalog=catalog(),
    )
    return PassManager([Assign(), Simulate()]).run(copy.deepcopy(graph), ctx).graph


def test_trace(benchmark, teacher):
    """Seconds to trace."""
    adapter, module, _ = teacher
    benchmark.pedantic(
        trace, (module, adapter.example()), {"call": adapter.call, "dynamic": adapter.dynamic()}, rounds=3
    )


@pytest.mark.parametrize("kind", ["eager", "traced", "simulated", "compiled"])
def test_denoise(benchmark, teacher, request, kind):
    """One call at batch 16: the module itself, its graph, the graph compiled, and the simulated W8A8 graph."""
    adapter, module, graph = teacher
    inputs = adapter.example(16)
    if kind == "eager":
        function = lambda: adapter.call(module, *inputs)  # noqa: E731
    else:
        chosen = request.getfixturevalue("simulated") if kind == "simulated" else graph
        chosen = torch.compile(chosen) if kind == "compiled" else chosen
        function = lambda: chosen(*inputs)  # noqa: E731
    with torch.no_grad():
        out, expected = function(), graph(*inputs)
        benchmark(function)
    noise = (out - expected).square().sum()
    benchmark.extra_info["sqnr_db"] = float(10 * torch.log10(expected.square().sum() / noise.clamp(min=1e-30)))
