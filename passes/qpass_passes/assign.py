"""Decide what is quantized and how: every convolution, linear layer and attention product gets its spec."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import attrs
from attrs import validators as v
from torch import nn
from torch.fx import GraphModule, Node

from qpass.errors import PreconditionError, did_you_mean
from qpass.graph import depends_on, split_attention
from qpass.graph.attention import after_softmax
from qpass.graph.names import op_name
from qpass.manager import Pass, PassContext, PassResult
from qpass.products import multiplied
from qpass.slots import MATMULS, layer, spec_of
from qpass.spec import NodeSpec, QuantSpec, parse_spec


def _weight_text(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value == "float":
        return
    spec = parse_spec(value, symmetric=True)
    if spec.dynamic or spec.time_groups > 1 or spec.granularity == "token":
        raise ValueError(f"{attribute.name}: a weight is static, so {value!r} makes no sense for it")


def _input_text(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value != "float":
        parse_spec(value, symmetric=False)


def _linear_text(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value != "same":
        _input_text(instance, attribute, value)


def _attention_text(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value in ("float", "same"):
        return
    if parse_spec(value, symmetric=False).granularity in ("channel", "group"):
        raise ValueError(
            f"{attribute.name}: the last axis of a product's operands may be tokens, whose number changes with the "
            f"image, so {value!r} must be by tensor or token"
        )


@attrs.frozen(kw_only=True)
class Rule:
    """An exception: nodes whose name matches the glob `match` take these instead; softmax outputs as `input`."""

    match: str
    weight: str = attrs.field(default="float", validator=_weight_text)
    input: str = attrs.field(default="float", validator=_input_text)
    softmax: str = attrs.field(default="same", validator=_attention_text)


@attrs.frozen(kw_only=True)
class Assign(Pass):
    """Give every node its quantization spec; nothing is rounded yet.

    "WxAy" in the literature of diffusion models: weights and inputs of every convolution and linear layer at x
    and y bits; queries, keys, values and softmax outputs of every attention at y bits; the first layer, the last
    layer and the time embedding at 8 bits. Embedding tables are left alone. The first and last layers and the
    time embedding are found in the graph: nothing quantizable stands between them and the input, the output, or
    (for the embedding) they see only the timestep and feed other layers that do.

    What is none of these stays in floating point, and the notes list it: transposed convolutions, layers whose weight
    is computed in each call (as by weight_norm), einsums.
    """

    name: ClassVar[str] = "assign"
    provides: ClassVar[frozenset[str]] = frozenset({"specs"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"specs", "realised"})
    weight: str = attrs.field(
        default="int8 channel",
        validator=_weight_text,
        metadata={"help": 'quantizer of weights, like "int4 group:64", or "float"'},
    )
    input: str = attrs.field(
        default="int8 tensor",
        validator=_input_text,
        metadata={"help": 'quantizer of layer inputs, like "int8 tensor time:10" or "int8 token dynamic"'},
    )
    linear_input: str = attrs.field(
        default="same",
        validator=_linear_text,
        metadata={
            "help": "quantizer of the inputs of linear layers, each token of which can have a scale of its own, like "
            '"int4 token dynamic"; "same" as those of convolutions, or "float"'
        },
    )
    attention: str = attrs.field(
        default="same",
        validator=_attention_text,
        metadata={
            "help": 'quantizer of q, k, v and softmax outputs; "same" as inputs (per tensor where those are by '
            'channel or group), or "float"'
        },
    )
    softmax: str = attrs.field(
        default="same",
        validator=_attention_text,
        metadata={"help": 'quantizer of softmax outputs, like "log2:4 tensor"; "same" as q, k and v, or "float"'},
    )
    edge_weight: str = attrs.field(
        default="int8 channel",
        validator=_weight_text,
        metadata={"help": "quantizer of the weights of first layer, last layer and time embedding"},
    )
    edge_input: str = attrs.field(
        default="int8 tensor",
        validator=_input_text,
        metadata={"help": "quantizer of the inputs of first layer, last layer and time embedding"},
    )
    keep: tuple[str, ...] = attrs.field(
        default=(),
        validator=v.deep_iterable(v.instance_of(str), v.instance_of(tuple)),
        metadata={"help": "globs of nodes left in floating point"},
    )
    rules: tuple[Rule, ...] = attrs.field(
        default=(),
        validator=v.deep_iterable(v.instance_of(Rule), v.instance_of(tuple)),
        metadata={"help": "exceptions, each {match, weight, input, softmax}; the last that matches holds"},
    )

    def requires(self, graph: GraphModule, ctx: PassContext) -> None:
        """Every glob matches something, and there is something to quantize."""
        names = [str(n.meta["origin"]) for n in graph.graph.nodes if layer(graph, n) is not None]
        names += _attention_names(graph)
        if not names:
            raise PreconditionError("assign: the graph holds no linear, convolution or attention to quantize")
        globs = dict.fromkeys((*self.keep, *(rule.match for rule in self.rules)))
        lost = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in names)]
        if lost:
            told = "; ".join(f"the glob {glob!r} matches no node, {did_you_mean(glob, names)}" for glob in lost)
            raise PreconditionError(f"assign: {told}")

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Split attention where its inside is quantized, and write the specs."""
        inside = self.input if self.attention == "same" else self.attention
        wanted = inside != "float" or self.softmax not in ("same", "float")
        split = split_attention(graph) if wanted else 0
        at_edge = edges(graph)
        count: Counter[str] = Counter()
        for node in graph.graph.nodes:
            spec = self._spec(graph, node, node in at_edge)
            if spec is not None:
                node.meta["qpass"] = spec
                count[_words(spec)] += 1
        graph.recompile()
        return PassResult(
            graph=graph,
            changed=True,
            notes={
                "quantized": dict(sorted(count.items())),
                "at 8 bits as edges": sorted(str(n.meta["origin"]) for n in at_edge if spec_of(n)),
                "attention split": split,
                "floating point": floating(graph),
            },
        )

    def _spec(self, graph: GraphModule, node: Node, edge: bool) -> NodeSpec | None:
        name = str(node.meta.get("origin", ""))
        if any(fnmatchcase(name, glob) for glob in self.keep):
            return None
        at = layer(graph, node)
        weight, given = (self.edge_weight, self.edge_input) if edge else (self.weight, self.input)
        if self.linear_input != "same" and isinstance(at, nn.Linear) and not edge:
            given = self.linear_input
        inside, softmax = self.input if self.attention == "same" else self.attention, self.softmax
        for rule in self.rules:
            if fnmatchcase(name, rule.match):
                weight, given, inside, softmax = rule.weight, rule.input, rule.input, rule.softmax
        if at is not None:
            spec = NodeSpec(weight=_parse(weight, True), inputs=(_parse(given, False),))
        elif node.target in MATMULS:
            texts = (softmax if softmax != "same" and after_softmax(arg) else inside for arg in node.args[:2])
            spec = NodeSpec(inputs=tuple(_inside_attention(text) for text in texts))
        else:
            return None
        return spec if spec.weight is not None or any(spec.inputs) else None


def _parse(text: str, symmetric: bool) -> QuantSpec | None:
    return None if text == "float" else parse_spec(text, symmetric=symmetric)


def _inside_attention(text: str) -> QuantSpec | None:
    """The spec of a product's operand: never by channel, as its last axis may be tokens."""
    spec = _parse(text, False)
    if spec is not None and spec.granularity in ("channel", "group"):
        return attrs.evolve(spec, granularity="tensor", group_size=0)
    return spec


def _words(spec: NodeSpec) -> str:
    inputs = ", ".join(str(s) if s else "float" for s in spec.inputs)
    return f"weight {spec.weight}, input {inputs}" if spec.weight else f"inputs {inputs}"


def _attention_names(graph: GraphModule) -> list[str]:
    """The products inside attention, as they will be called once it is split."""
    names = []
    for node in graph.graph.nodes:
        origin = str(node.meta.get("origin", ""))
        if "/scaled_dot_product_attention[" in origin:
            names += [origin.replace("scaled_dot_product_attention", part) for part in ("qk", "pv")]
        elif node.target in MATMULS:
            names.append(origin)
    return names


def edges(graph: GraphModule) -> set[Node]:
    """The first and the last layers, and those of the time embedding."""
    nodes = [n for n in graph.graph.nodes if layer(graph, n) is not None]
    inside = set(nodes)
    from_x, from_t = depends_on(graph, 0), depends_on(graph, 1)
    found = {n for n in nodes if n in from_x and not (_above(n, inside) & from_x)}
    output = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    found |= _above(output, inside)
    timed = [n for n in nodes if n in from_t and n not in from_x]
    for node in timed:
        found |= _above(node, inside) & set(timed)
    return found


def _above(node: Node, stops: set[Node]) -> set[Node]:
    """The nearest of `stops` on each way up from a node."""
    found: set[Node] = set()
    seen: set[Node] = set()
    ahead = list(node.all_input_nodes)
    while ahead:
        current = ahead.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in stops:
            found.add(current)
        else:
            ahead.extend(current.all_input_nodes)
    return found


def floating(graph: GraphModule) -> dict[str, list[str]]:
    """Nodes that multiply in floating point, by what they are: also products that are no module and no attention."""
    left: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        spec = spec_of(node)
        if spec is not None and all(spec.inputs) and (spec.weight or layer(graph, node) is None):
            continue
        origin = str(node.meta.get("origin", ""))
        kind: Any = None
        if node.op == "call_module":
            kind = type(graph.get_submodule(str(node.target))).__name__
        elif node.target in MATMULS or "scaled_dot_product_attention[" in origin:
            kind = "attention"
        elif multiplied(node):
            kind = op_name(node)
        if kind is not None:
            left.setdefault(kind, []).append(origin)
    return left
