"""Graphs that a pass has learned on, in a few iterations, and the bytes of what it left."""

from __future__ import annotations

import copy

from qpass_passes.assign import Assign

from qpass.manager import PassManager

FEW = {"iterations": 30, "batch": 8, "rows": 32}


def prepared(context, **options):
    """The context's graph with specs, ready for a pass that learns."""
    graph = copy.deepcopy(context.reference)
    return Assign(**{"weight": "int4 channel", "input": "int8 tensor", **options}).run(graph, context).graph


def run(context, *passes, **options):
    """The graph after `assign` and these."""
    return PassManager(passes).run(prepared(context, **options), context).graph


def bytes_of(graph):
    return {name: tensor.numpy().tobytes() for name, tensor in graph.named_buffers()}
