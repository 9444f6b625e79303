"""Factors by channel, on every traced class: the model stays what it was, wherever they go."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from qpass_passes.assign import Assign
from qpass_passes.equivalence.rescale import rescale
from qpass_passes.equivalence.ties import ties

from qpass.kernels import reference


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in tiny.NAMES if name != "vit"])  # which knows no timestep
@pytest.mark.parametrize("powers", [True, False], ids=["powers of two", "any"])
def test_every_model_stays_what_it_was(zoo, name, powers):
    """Powers of two change no bit, any factors within 0.1 and 10 less than 1e-5 of the output's size."""
    model, traced = zoo(name)
    graph = copy.deepcopy(traced)
    Assign(edge_weight="int4 channel", edge_input="int4 tensor", attention="float").run(graph, None)
    source = torch.Generator().manual_seed(0)
    found = ties(graph)
    for tie in found:
        width = tie.weights(graph)[0].shape[1]
        exponents = torch.rand(width, generator=source) * 2 - 1
        rescale(graph, tie, torch.exp2((3 * exponents).round()) if powers else torch.pow(10.0, exponents))
    graph.graph.lint()
    assert found
    assert any(node.target is reference.rescale for node in graph.graph.nodes)
    inputs = model.example(3, seed=1)
    expected, got = traced(*inputs), graph(*inputs)
    if powers:
        assert torch.equal(expected, got)
    else:
        assert float((expected - got).abs().max() / expected.abs().max()) < 1e-5
