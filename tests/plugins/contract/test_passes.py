"""What every pass keeps to."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import attrs
import torch
from installed import KNOWN, before, every, made, run, short
from torch.fx import GraphModule

from qpass.analysis import Analysis
from qpass.artifact import Artifact, load_artifact, save
from qpass.graph import check_devices, is_compute, sizes
from qpass.graph.names import origins
from qpass.manager import PassContext, PassManager
from qpass.recipe import order_problems
from qpass.recipe.structure import to_data
from qpass.report.data import plain


@every("passes")
class TestPasses:
    """On a real UNet of 8 x 8 images, with attention and seeded weights."""

    def test_class_vars(self, cls: Any) -> None:
        """Facts are words; what it preserves are analyses."""
        for facts in (cls.needs, cls.provides, cls.conflicts):
            assert isinstance(facts, frozenset)
            assert all(re.fullmatch(r"[a-z-]+", fact) for fact in facts)
        assert isinstance(cls.preserves, frozenset)
        assert all(issubclass(analysis, Analysis) for analysis in cls.preserves)
        assert not order_problems([KNOWN.classes["passes"][name] for name in before(cls)] + [cls], KNOWN)

    def test_run(self, cls: Any, context: PassContext, tmp_path: Any) -> None:
        """It takes a well-formed graph to a well-formed one that any device, any batch and an artifact can hold."""
        teacher = fingerprint(context.reference)
        ready = run([made(KNOWN.classes["passes"][name]) for name in before(cls)], context)
        had = {str(n.meta["origin"]) for n in ready.graph.nodes if n.op == "call_module"}
        step = short(cls)
        step.requires(copy.deepcopy(context.reference), context)
        manager = PassManager([step], options=to_data)
        done = manager.run(ready, context)
        graph = done.graph

        graph.graph.lint()
        compute = [n for n in graph.graph.nodes if is_compute(n) and n not in sizes(graph.graph)]
        assert all(n.meta.get("origin") and "stack" in n.meta for n in compute)
        names = [n.meta["origin"] for n in graph.graph.nodes if "origin" in n.meta]
        assert len(names) == len(set(names)), "two nodes have one name"
        assert had <= origins(graph.graph), "a layer has lost its name"
        check_devices(graph, context.model.example(), "cuda")

        for batch in (2, 5):
            inputs = context.model.example(batch)
            with torch.no_grad():
                output = graph(*inputs)
            assert output.shape == inputs[0].shape
            assert torch.isfinite(output).all()
        assert fingerprint(context.reference) == teacher, "the teacher was rewritten"

        (record,) = done.records
        json.dumps(plain(attrs.asdict(record, recurse=False)), allow_nan=False)
        save(Artifact(graph=graph, plan=done.plan), tmp_path / "artifact", KNOWN)
        loaded = load_artifact(tmp_path / "artifact", KNOWN)
        with torch.no_grad():
            assert torch.equal(loaded.graph(*inputs), output)
        assert origins(loaded.graph.graph) == origins(graph.graph)

    def test_the_same_again(self, cls: Any, context: PassContext) -> None:
        """Two runs from one seed give the same weights and the same output."""
        graphs = [
            run([*(made(KNOWN.classes["passes"][name]) for name in before(cls)), short(cls)], context)
            for _ in range(2)
        ]
        assert fingerprint(graphs[0]) == fingerprint(graphs[1])
        inputs = context.model.example()
        with torch.no_grad():
            assert torch.equal(graphs[0](*inputs), graphs[1](*inputs))


def fingerprint(graph: GraphModule) -> str:
    """All that a graph computes from."""
    state = {name: (tuple(t.shape), float(t.double().sum())) for name, t in graph.state_dict().items()}
    return f"{graph.code}{sorted(state.items())}"
