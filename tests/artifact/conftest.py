"""Tiny diffusers models, quantized: what artifacts are made of."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import pytest
import torch
from qpass_models.diffusers_model import DiffusersModel
from qpass_passes.assign import Assign
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import Simulate
from torch import Tensor
from torch.fx import GraphModule

from qpass.activations import Samples
from qpass.analysis import Analysis
from qpass.artifact import Artifact, save
from qpass.graph import trace
from qpass.manager import PassContext, PassManager
from qpass.plugins import Catalog, catalog
from qpass.sampling import Sampling

sys.path.insert(0, str(Path(__file__).parent))  # for `forger`
sys.path.insert(0, str(Path(__file__).parent.parent / "graph"))  # the tiny models that tracing is held to
import tiny

# DiTPipeline takes 1000 for "no class", and outputs that hold a variance too
tiny.CONFIGS["dit-pipeline"] = (
    "DiTTransformer2DModel",
    {**tiny.CONFIGS["dit"][1], "num_embeds_ada_norm": 1000, "out_channels": 8},
)

Inputs = tuple[Tensor, ...]


@attrs.frozen(kw_only=True)
class Examples(Analysis[Samples]):
    """Calibration on the adapter's own examples, at timesteps all over the range; text models have no other."""

    name: ClassVar[str] = "examples"
    of: ClassVar[Literal["reference", "graph"]] = "reference"
    rows: int = 8

    def compute(self, graph: GraphModule, ctx: PassContext) -> Samples:
        x, t, *cond = ctx.model.example(self.rows)
        return Samples(inputs=(x, torch.linspace(0, 999, self.rows).to(t.dtype), *cond))


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """A quantized tiny model, and where it came from."""

    adapter: DiffusersModel
    artifact: Artifact
    example: Callable[..., Inputs]

    def output(self, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            result: Tensor = self.artifact.graph(*inputs)
        return result


Quantize = Callable[..., Case]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def known() -> Catalog:
    return catalog()


@pytest.fixture(scope="session")
def quantize(known: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    """`quantize(model, weight, input, dtype)`: each made once."""

    @cache
    def traced(name: str, dtype: str) -> tuple[DiffusersModel, GraphModule]:
        folder = tmp_path_factory.mktemp(name) / "model"
        tiny.make(name).module.save_pretrained(folder)  # type: ignore[operator]
        adapter = DiffusersModel(path=str(folder), dtype=dtype)  # type: ignore[arg-type]
        graph = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
        return adapter, graph

    @cache
    def make(name: str, weight: str = "int8 channel", given: str = "int8 tensor", dtype: str = "float32") -> Case:
        adapter, graph = traced(name, dtype)
        context = PassContext(
            model=adapter, reference=graph, sampling=Sampling(), calibration=Examples(), catalog=known
        )
        passes = (Assign(weight=weight, input=given), Simulate(weight=AbsMax(), input=AbsMax()))
        done = PassManager(passes).run(copy.deepcopy(graph), context)
        about: dict[str, Any] = {"config": dict(adapter.config()), "signature": adapter.signature()}
        return Case(
            adapter=adapter,
            artifact=Artifact(graph=done.graph, plan=done.plan, about=about),
            example=tiny.make(name, getattr(torch, dtype)).example,
        )

    return make


@pytest.fixture(scope="module")
def whole(quantize: Quantize, known: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact as it should be."""
    folder = tmp_path_factory.mktemp("whole") / "artifact"
    save(quantize("unet", "int4 group:16", "int8 tensor time:4").artifact, folder, known)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    harmed = tmp_path / "artifact"
    shutil.copytree(whole, harmed)
    return harmed
