"""Origins and stacks: unique, readable, and the same however the model was traced."""

from __future__ import annotations

import json
import re

import pytest
import tiny
import torch

import qpass.graph as graph
from qpass.graph.names import inherit, origins

OP = re.compile(r"^([\w.]*)/(\w+)\[(\d+)\]$")
LAYER = re.compile(r"^[\w.]+(#\d+)?$")


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_compute_node_has_its_own_origin(zoo, name):
    """Layers are `name` or `name#k`, everything else `owner/op[k]` with k from 0; no two are equal."""
    _, gm = zoo(name)
    nodes = [node for node in gm.graph.nodes if graph.is_compute(node)]
    found = [node.meta["origin"] for node in nodes]
    assert len(set(found)) == len(found)
    for node in nodes:
        pattern = LAYER if node.op == "call_module" else OP
        assert pattern.match(node.meta["origin"])
        owner, op, k = OP.match(node.meta["origin"]).groups() if node.op != "call_module" else ("", "", "0")
        assert node.op == "call_module" or k == "0" or f"{owner}/{op}[{int(k) - 1}]" in found


@pytest.mark.parametrize("name", tiny.NAMES)
def test_stacks_are_the_models_own_modules(zoo, name):
    """A stack is JSON, starts at the root, and names modules of the model with their classes."""
    model, gm = zoo(name)
    modules = dict(model.module.named_modules())
    for node in gm.graph.nodes:
        stack = node.meta.get("stack", ())
        assert json.loads(json.dumps(stack)) == [list(entry) for entry in stack]
        for path, class_name in stack:
            assert type(modules[path]).__name__ == class_name
        if node.op == "call_module":
            assert stack[0][0] == ""
            assert stack[-1][0] == node.target


@pytest.mark.parametrize("name", ["unet", "dit", "flux"])
def test_origins_do_not_depend_on_batch_or_dtype(zoo, name):
    """Traced at batch 2, at batch 5 and in bf16: the same origins, in the same order."""
    model, gm = zoo(name)
    other = graph.trace(model.module, model.example(5), call=model.call, dynamic=model.dynamic)
    half = zoo(name, torch.bfloat16)[1]
    wanted = [node.meta.get("origin") for node in gm.graph.nodes]
    assert [node.meta.get("origin") for node in other.graph.nodes] == wanted
    assert [node.meta.get("origin") for node in half.graph.nodes] == wanted


def test_a_rewrite_inherits_owner_and_index(zoo):
    """What stands for a layer or an op is named after it, and never like something that is there."""
    _, gm = zoo("vit")
    taken = origins(gm.graph)
    node = next(iter(gm.graph.find_nodes(op="call_module")))
    with gm.graph.inserting_after(node):
        made = [gm.graph.call_function(torch.neg, (node,)) for _ in range(2)]
    named = [inherit(new, node, "rescale", taken).meta["origin"] for new in made]
    assert named == ["patch_embed.proj/rescale[0]", "patch_embed.proj/rescale[1]"]
    assert made[0].meta["stack"] == node.meta["stack"]
    for new in made:
        gm.graph.erase_node(new)
