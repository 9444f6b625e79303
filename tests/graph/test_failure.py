"""What cannot be traced is one error that names the module and the line."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import qpass.graph as graph
from qpass.errors import TraceError


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        if x.sum() > 0:  # here
            return x
        return -x


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 4)  # here


class ReadsValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x[0, 0])  # here


class Mismatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(3, 3)  # here


class Region(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.T  # here


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last.add_(1)
        return x + self.last[:1]


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Identity(), inner])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x + t[:, None]


EXAMPLE = (torch.ones(2, 4), torch.ones(2))


def here(kind: type[nn.Module]) -> int:
    lines, start = inspect.getsourcelines(kind)
    return start + next(k for k, line in enumerate(lines) if "# here" in line)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (DataDependent, "control flow depends on the values of a tensor"),
        (ReadsValue, "control flow depends on the values of a tensor"),
        (FixedBatch, "dim 0 of input 0 is fixed at 2"),
        (Mismatch, ""),
        (Region, "is no plain tensor operation"),
    ],
)
def test_the_module_and_the_line_are_named(kind, reason, capfd):
    """The dotted name, the class, and file:line of the user's own code; no graph is printed."""
    with pytest.raises(TraceError) as caught:
        graph.trace(Outer(kind()), EXAMPLE)
    message = str(caught.value)
    assert f"module 'stages.1' ({kind.__name__})" in message
    assert f"{__file__}:{here(kind)}: " in message
    assert reason in message
    assert capfd.readouterr() == ("", "")


def test_it_is_raised_from_its_cause():
    """The original error is there for whoever wants it."""
    with pytest.raises(TraceError) as caught:
        graph.trace(Outer(DataDependent()), EXAMPLE)
    assert "data-dependent" in str(caught.value.__cause__)


def test_state_and_many_outputs_are_refused():
    """A denoiser is a function of its inputs to one tensor."""
    with pytest.raises(TraceError, match=r"it writes to stages.1.last"):
        graph.trace(Outer(Remembers()), EXAMPLE)
    with pytest.raises(TraceError, match="Outer returns 2 tensors"):
        graph.trace(Outer(nn.Identity()), EXAMPLE, call=lambda m, x, t: (m(x, t), x))
