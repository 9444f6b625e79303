"""A tiny diffusion model that images can be drawn from, and the context evaluators work in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from qpass.analysis import Analysis
from qpass.manager import PassContext
from qpass.model import ModelAdapter
from qpass.plugins import Catalog
from qpass.sampling import Sampler, Sampling
from qpass.spec import NodeSpec, QuantSpec


class TinyNet(nn.Module):
    """Two convolutions without bias, and a linear of the timestep between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.time = nn.Linear(1, 8)
        self.act = nn.SiLU()
        self.last = nn.Conv2d(8, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift = self.time(t.reshape(-1, 1) / 1000).unsqueeze(-1).unsqueeze(-1)
        output: Tensor = self.last(self.act(self.first(x) + shift))
        return output


@attrs.frozen(kw_only=True)
class TinyAdapter(ModelAdapter):
    name: ClassVar[str] = "tiny"

    def load(self) -> nn.Module:
        torch.manual_seed(0)
        return TinyNet().eval()

    def skeleton(self) -> nn.Module:
        return TinyNet().eval()

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        source = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, 12, 12, generator=source), torch.full((batch,), 500)

    def config(self) -> Mapping[str, Any]:
        return {}

    def fingerprint(self) -> str:
        return "tiny"

    def cannot_sample(self) -> str | None:
        return None

    def sampler(self) -> Sampler:
        return Sampler(shape=(3, 12, 12), scheduler_config={"num_train_timesteps": 1000, "clip_sample": True})


class MuteAdapter(TinyAdapter):
    """The same, but no images can be drawn from it."""

    name: ClassVar[str] = "mute"

    def cannot_sample(self) -> str | None:
        return "model 'mute' has no scheduler"


class NoCalibration(Analysis[None]):
    name: ClassVar[str] = "none"

    def compute(self, graph: GraphModule, ctx: PassContext) -> None:
        return None


def with_origins(graph: GraphModule) -> GraphModule:
    """Name the call of each module by the module, as tracing does."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            node.meta["origin"] = node.target
    return graph


@pytest.fixture
def specify() -> Callable[..., GraphModule]:
    """Makes a copy of a graph whose named modules hold specs."""

    def make(graph: GraphModule, **specs: NodeSpec) -> GraphModule:
        graph = copy.deepcopy(graph)
        for node in graph.graph.nodes:
            if node.target in specs:
                node.meta["qpass"] = specs[node.target]
        return graph

    return make


@pytest.fixture
def spec() -> Callable[..., NodeSpec]:
    """Makes the spec of a simulated node: bits of weight and input, and how the weight is quantized."""

    def make(
        weight: int | tuple[int, ...], x: int | None = 8, grain: str = "tensor", symmetric: bool = True
    ) -> NodeSpec:
        return NodeSpec(
            weight=QuantSpec(bits=weight, granularity=grain, symmetric=symmetric),
            inputs=(None if x is None else QuantSpec(bits=x),),
            execution="simulated",
        )

    return make


@pytest.fixture
def mute() -> ModelAdapter:
    """A model that images cannot be drawn from."""
    return MuteAdapter()


@pytest.fixture
def teacher() -> GraphModule:
    return with_origins(symbolic_trace(TinyAdapter().load()))


@pytest.fixture
def context() -> Callable[..., PassContext]:
    def make(reference: GraphModule, **fields: Any) -> PassContext:
        values: dict[str, Any] = {
            "model": TinyAdapter(),
            "sampling": Sampling(steps=4, batch=3),
            "calibration": NoCalibration(),
            "catalog": Catalog(classes={}, ops={}, broken=(), hook=None),
        }
        return PassContext(reference=reference, **{**values, **fields})

    return make
