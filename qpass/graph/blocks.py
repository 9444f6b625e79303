"""Cuts a graph into its chain of blocks, and makes any one of them a module of its own."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Literal, cast

import attrs
from torch.fx import Graph, GraphModule, Node

from qpass.graph.nodes import compute_nodes, sizes

Kind = Literal["residual", "attention", "transformer", "resampling", "other"]
Stack = tuple[tuple[str, str], ...]
Key = tuple[str, Kind]

_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (  # by class name
    ("residual", re.compile(r"Res(net|idual)?(Temporal)?Block\w*|BasicResBlock\w*")),
    (
        "transformer",
        re.compile(r"\w*Transformer(Encoder|Decoder)?(Block|Layer)|(\w*[DV]iT|Parallel\w*)?Block"),
    ),
    ("attention", re.compile(r"\w*Attention(2D)?|Attn(Block)?|AttentionBlock")),
    ("resampling", re.compile(r"(Up|Down)sample(r|1D|2D|3D)?")),
)
_NORM = re.compile(r"Norm")


@attrs.frozen(kw_only=True, eq=False)
class Block:
    """A run of consecutive nodes, the tensors it reads from outside, and those it makes for others."""

    name: str
    kind: Kind
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


def blocks(gm: GraphModule) -> tuple[Block, ...]:
    """The chain of blocks: every compute node is in one, and each needs only inputs and earlier blocks.

    A block is a run of nodes under one residual, attention, transformer or resampling module, the outermost
    on their stacks; what lies between two such runs is one block of kind "other". Its name is the module's
    dotted name (`name#2` if it runs again later); an "other" block has the origin of its first layer, or of
    its first node. Sizes are in no block: each block reads its own.
    """
    order = compute_nodes(gm.graph)
    keys = _keys(order)
    return _chain(gm, [(key, tuple(run)) for key, run in groupby(order, lambda node: keys[node])])


def blocks_ending_at(gm: GraphModule, ends: Collection[Node]) -> tuple[Block, ...]:
    """A finer chain, each of whose blocks ends at one of these nodes and is named after it.

    What comes after the last of them is one more block.
    """
    runs: list[tuple[Key | None, tuple[Node, ...]]] = []
    run: list[Node] = []
    for node in compute_nodes(gm.graph):
        if node.target is operator.getitem and not run and runs:
            key, done = runs[-1]  # one of several results stays with what made it
            runs[-1] = (key, (*done, node))
            continue
        run.append(node)
        if node in ends:
            runs.append(((str(node.meta.get("origin", node.name)), "other"), tuple(run)))
            run = []
    return _chain(gm, [*runs, (None, tuple(run))] if run else runs)


def block_of(gm: GraphModule, nodes: Collection[Node], name: str) -> Block:
    """These compute nodes, wherever they stand, as one block; what they need must not depend on what they make."""
    run = tuple(node for node in compute_nodes(gm.graph) if node in nodes)
    skipped = sizes(gm.graph)
    outside = [node for node in compute_nodes(gm.graph) if node not in nodes]
    read = set(_inputs(tuple(outside), skipped)) | set(gm.graph.output_node().all_input_nodes)
    return Block(
        name=name,
        kind="other",
        nodes=run,
        inputs=_inputs(run, skipped),
        outputs=tuple(node for node in run if node in read),
    )


def _chain(gm: GraphModule, runs: Sequence[tuple[Key | None, tuple[Node, ...]]]) -> tuple[Block, ...]:
    """Blocks of consecutive runs that partition the compute nodes."""
    skipped = sizes(gm.graph)
    inputs = [_inputs(run, skipped) for _, run in runs]
    read = {node for nodes in inputs for node in nodes} | set(gm.graph.output_node().all_input_nodes)
    seen: dict[str, int] = {}
    found = []
    for (key, run), reads in zip(runs, inputs, strict=True):
        name, kind = key or (_first(run), "other")
        seen[name] = seen.get(name, 0) + 1
        found.append(
            Block(
                name=name if seen[name] == 1 else f"{name}#{seen[name]}",
                kind=kind,
                nodes=run,
                inputs=reads,
                outputs=tuple(node for node in run if node in read),
            )
        )
    return tuple(found)


def block_module(gm: GraphModule, block: Block) -> GraphModule:
    """The block alone: called with the tensors of `block.inputs`, it returns the tuple of `block.outputs`.

    It shares parameters, buffers and modules with `gm`: what is trained in the block is trained in the model.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in block.inputs:
        copies[node] = graph.placeholder(node.name)

    def copy(node: Node) -> Node:
        if node not in copies:  # a size, an attribute, or the next node of the block
            for source in node.all_input_nodes:
                copy(source)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    for node in block.nodes:
        copy(node)
    graph.output(tuple(copies[node] for node in block.outputs))
    graph.lint()
    return GraphModule(gm, graph, class_name="Block")


def _inputs(run: tuple[Node, ...], skipped: set[Node]) -> tuple[Node, ...]:
    """The tensors a run reads from outside, also through sizes, in the order it reads them."""
    inside, found = set(run), dict[Node, None]()

    def read(node: Node) -> None:
        if node in skipped:
            for source in node.all_input_nodes:
                read(source)
        elif node not in inside and node.op != "get_attr":
            found[node] = None

    for node in run:
        for source in node.all_input_nodes:
            read(source)
    return tuple(found)


def _keys(order: list[Node]) -> dict[Node, Key | None]:
    """The block each node is in, by the class names on its stack, else by structure; None is "other"."""
    named = {node: _named(_stack(node)) for node in order}
    taken = {key[0] for key in named.values() if key}
    structural = _structural(order, taken)
    keys: dict[Node, Key | None] = {}
    for node in order:
        if node.target is operator.getitem and node.args[0] in keys:
            keys[node] = keys[cast(Node, node.args[0])]  # one of several results stays with what made it
            continue
        inner = next(((path, kind) for path, kind in structural.items() if path in dict(_stack(node))), None)
        keys[node] = named[node] or inner
    return keys


def _named(stack: Stack) -> Key | None:
    for path, class_name in stack[1:]:
        for kind, pattern in _KINDS:
            if pattern.fullmatch(class_name):
                return path, kind
    return None


def _structural(order: list[Node], taken: set[str]) -> dict[str, Kind]:
    """Blocks of unknown classes: members of a list, of one class, that each hold a norm and several layers.

    The innermost such modules, and none that holds a block known by name.
    """
    classes: dict[str, str] = {}
    layers: dict[str, set[str]] = {}
    norms: set[str] = set()
    for node in order:
        origin = str(node.meta.get("origin", ""))
        for path, class_name in _stack(node)[1:]:
            classes[path] = class_name
            if "/" not in origin:
                layers.setdefault(path, set()).add(origin.partition("#")[0])
            if "norm" in origin.rpartition("/")[2] or any(_NORM.search(c) for _, c in _stack(node)):
                norms.add(path)
    members = [
        path
        for path in classes
        if path.rpartition(".")[2].isdigit()
        and path in norms
        and len(layers.get(path, ())) > 1
        and not any(_holds(path, other) for other in taken)
    ]
    repeated = [
        p for p in members if any(p != q and _same_list(p, q) and classes[p] == classes[q] for q in members)
    ]
    inner = [p for p in repeated if not any(_holds(p, q) for q in repeated)]
    return dict.fromkeys(inner, "transformer")


def _holds(path: str, other: str) -> bool:
    return other.startswith(f"{path}.")


def _same_list(path: str, other: str) -> bool:
    return path.rpartition(".")[0] == other.rpartition(".")[0]


def _stack(node: Node) -> Stack:
    return tuple(tuple(entry) for entry in node.meta.get("stack", ()))  # JSON gives lists


def _first(run: tuple[Node, ...]) -> str:
    origins = [str(node.meta.get("origin", node.name)) for node in run]
    return next((origin for origin in origins if "/" not in origin), origins[0])
