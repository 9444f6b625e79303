"""Recording inside a graph: no further than asked for, and in batches that memory has room for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qpass import activations
from qpass.activations import Samples, record, run_recording


class Counts(nn.Module):
    """Keeps the number of rows that each call had."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        return x


class Net(nn.Module):
    """A small tensor, the product of each row with itself, and what reads that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Counts(), Counts()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        small = self.first(x)
        return self.last((small.unsqueeze(2) * small.unsqueeze(1)).sum(2))


class Leaves(torch.fx.Tracer):
    """Does not look into `Counts`."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Counts)


@pytest.fixture
def net():
    """Its graph; as usual, tracing would look into the counters."""
    model = Net()
    return torch.fx.GraphModule(model, Leaves().trace(model))


def node(graph, name):
    return next(n for n in graph.graph.nodes if n.target == name)


def test_nothing_after_the_last_wanted_node_is_computed(net):
    """And what is wanted is what a run of the whole graph has there."""
    x, t = torch.randn(3, 16), torch.zeros(3)
    found = run_recording(net, [node(net, "first")], (x, t))
    assert torch.equal(found[node(net, "first")], x)
    assert (net.first.rows, net.last.rows) == ([3], [])
    found = run_recording(net, [node(net, "first"), node(net, "last")], (x, t))
    assert torch.allclose(found[node(net, "last")], x * x.sum(1, keepdim=True), atol=1e-5)


def test_large_tensors_are_met_in_small_batches(net, monkeypatch):
    """A row's product of 16 x 16 in fp32 is 1 kB, and four such tensors are counted for each row of a batch."""
    samples = Samples(inputs=(torch.randn(20, 16), torch.zeros(20)))
    monkeypatch.setattr(activations, "LEAST", 0)
    for budget, batch in ((1 << 30, 20), (9 * 4 * 1025, 9), (0, 1)):
        net.last.rows.clear()
        for seen in record(net, [node(net, "last")], samples, device=torch.device("cpu"), budget=budget, batch=64):
            found = torch.cat(seen[node(net, "last")])
        assert max(net.last.rows[1:]) == batch  # the first call only looks
        assert torch.allclose(found, net(*samples.inputs), atol=1e-5)
