"""Dynamically adaptive quantizers: evenly spaced or logarithmic levels for softmax outputs, timestep by timestep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators as v
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples, run_recording
from qpass.figure import cells
from qpass.graph.attention import after_softmax
from qpass.kernels import reference
from qpass.manager import Pass, PassContext, PassResult
from qpass.quantizer import QParams, Quantizer, fake_quantize, summarise
from qpass.slots import MATMULS, Slot, slots
from qpass.spec import QuantSpec
from qpass.timegroups import edges_for
from qpass_passes.chosen_levels import write_even, write_levels
from qpass_passes.fitting import choose_rows, fit, refuse_fitted, refuse_several, settled, spread_rows
from qpass_passes.power_law import Alternative, Verdict, judge
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.quantizers.adaptive_log import search
from qpass_passes.quantizers.log2 import log_params
from qpass_passes.quantizers.mse import Mse

BATCH = 64  # rows in each run of the model
COPIES = 8  # of a softmax's output that a choice makes, at most, at a time
SCALES = 16  # how many scales are tried with each base, and again around the best


@attrs.frozen(kw_only=True, eq=False)
class Choice:
    """What was found for one softmax output in one time group: the best of each kind, and the likelihoods.

    Kinds are u, evenly spaced levels, l, powers of 2^(1/k), and o, levels of some other quantizer's own. Errors are
    those of softmax(...) V.
    """

    params: Mapping[str, QParams]
    errors: Mapping[str, float]
    verdict: Verdict

    def letter(self, criterion: str) -> str:
        """Which kind it is to be; a tie is for evenly spaced levels."""
        if criterion == "error":
            return min(self.errors, key=self.errors.__getitem__)
        return "l" if self.verdict.ratio > 0 else "u"

    @property
    def k(self) -> float:
        """Of the powers: how many levels halve the value."""
        most, next_ = self.params["l"].tensors["table"].reshape(-1).topk(2).values.tolist()
        return round(1 / math.log2(most / next_), 3)

    @property
    def gain(self) -> float:
        """How many times powers halve the error of evenly spaced levels; below zero where they raise it."""
        even, powers = (max(self.errors[kind], 1e-30) for kind in "ul")
        return math.log2(even / powers)


@attrs.frozen(kw_only=True)
class Daq(Pass):
    """For each softmax output and time group, evenly spaced levels or powers of 2^(1/k): DAQ of TCAQ-DM (2412.16700).

    The paper fits a power law by maximum likelihood and takes log2 where the log-likelihood ratio R against another
    distribution is positive: `criterion = "likelihood"`. It does not say which other one, nor from which x_min on, and
    the verdict hangs on both; here they are options, x_min in units of a softmax's mean, 1 / tokens. The default
    criterion is the `error` of softmax(...) V, for which the ratio stands: the lower one wins, ties go to even
    spacing. It also chooses k among `bases` (log2 is k = 1), and between the full range and a searched one. What
    `others` fit takes part in that, whoever wrote them: for `int`, for `log`, and for `levels`, any they like. Both
    verdicts are in the notes, a letter for each time group: u for evenly spaced levels, l for powers, o for other
    levels. Time groups are those of `assign`, as in softmax = "int4 tensor time:20".
    """

    name: ClassVar[str] = "daq"
    needs: ClassVar[frozenset[str]] = frozenset({"specs"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"corrected", "realised"})

    criterion: Literal["error", "likelihood"] = attrs.field(
        default="error", validator=v.in_(("error", "likelihood")), metadata={"help": "what decides"}
    )
    alternative: Alternative = attrs.field(
        default="exponential",
        validator=v.in_(("exponential", "half-normal", "log-normal")),
        metadata={"help": "what the power law is compared with"},
    )
    x_min: float = attrs.field(
        default=1.0, validator=v.gt(0), metadata={"help": "where the tail begins, in units of 1 / tokens"}
    )
    bases: tuple[int, ...] = attrs.field(
        default=(1, 2, 3, 4),
        validator=[v.min_len(1), v.deep_iterable(v.ge(1), v.instance_of(tuple))],
        metadata={"help": "the k that are tried for levels 2^(-n / k)"},
    )
    uniform: Quantizer = attrs.field(
        factory=Mse, metadata={"help": "how evenly spaced levels are fitted, beside the full range"}
    )
    others: tuple[Quantizer, ...] = attrs.field(
        default=(),
        validator=v.deep_iterable(v.instance_of(Quantizer), v.instance_of(tuple)),  # type: ignore[type-abstract]
        metadata={"help": "quantizers to try as well, by error, such as a plugin's"},
    )
    rows: int = attrs.field(
        default=128,
        validator=v.ge(1),
        metadata={"help": "calibration rows to look at; more where there are many time groups: 8 for each"},
    )

    def __attrs_post_init__(self) -> None:
        if self.others and self.criterion == "likelihood":
            raise ValueError(
                "others: the likelihood tells powers from even spacing and nothing else; leave them out, or "
                'write criterion = "error"'
            )

    @torch.no_grad()
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Layer after layer; where any group takes powers, all its levels are written down, else scales."""
        calibration = ctx.get(ctx.calibration, graph)
        found = [slot for slot in slots(graph) if _wanted(slot)]
        refuse_fitted(graph, self.name, found)
        refuse_several(graph, found, calibration, ctx.device)
        edges_of = {slot.home: edges_for(slot.spec, calibration.t) for slot in found}
        samples = spread_rows(calibration, self.rows, ctx.seed, edges_of.values())
        verdicts: dict[str, dict[str, object]] = {}
        gains: dict[str, dict[float, float]] = {}
        ratios: dict[str, dict[float, float]] = {}
        changed = False
        with ctx.progress.task("daq", len(found)) as task:
            for slot in found:
                choices, edges = self._choices(graph, slot, samples, edges_of[slot.home], ctx)
                taken = [choice.letter(self.criterion) for choice in choices]
                chosen = [choice.params[letter] for choice, letter in zip(choices, taken, strict=True)]
                if set(taken) == {"u"}:
                    write_even(graph, slot, chosen, edges, ctx.device)
                else:
                    write_levels(graph, slot, chosen, edges, ctx.device)
                changed = True
                name, times = str(slot.node.meta["origin"]), first_times(calibration.t, edges)
                gains[name] = {t: float(f"{choices[g].gain:.3g}") for g, t in times.items()}
                ratios[name] = {t: float(f"{choices[g].verdict.normalised:.3g}") for g, t in times.items()}
                verdicts[name] = {
                    "error": _letters(choices, "error"),
                    "likelihood": _letters(choices, "likelihood"),
                    "alpha": [float(f"{c.verdict.alpha:.4g}") for c in choices],
                    "k": [c.k for c in choices],
                }
                task.advance()
        letters = "".join(str(one[self.criterion]) for one in verdicts.values())
        share = round(letters.count("l") / len(letters), 4) if letters else 0.0
        words = {"x": "timestep", "above": "powers", "below": "evenly spaced"}
        notes = {
            "softmax outputs": len(found),
            "logarithmic": share,
            "by": verdicts,
            "error: how many times powers halve it": cells(gains, **words),
            "likelihood: R / (sigma sqrt n)": cells(ratios, **words),
        }
        return PassResult(graph=graph, changed=changed, notes=notes)

    def _choices(
        self, graph: GraphModule, slot: Slot, samples: Samples, edges: Tensor | None, ctx: PassContext
    ) -> tuple[list[Choice], Tensor | None]:
        """For each time group, and where these end."""
        value = slot.node.args[1]
        assert isinstance(value, Node)
        one, _ = _seen(graph, (slot.source, value), samples.take(torch.tensor([0])), 1, ctx.device)
        most = max(1, ctx.memory_budget // (2 * COPIES * one.nbytes))
        batch = min(BATCH, most)
        edges = settled(edges, slot, _values(graph, slot.source, samples, batch, ctx.device), samples.t)
        zero = torch.zeros(len(samples), dtype=torch.long)
        group = zero if edges is None else reference.time_group(samples.t, edges)
        choices = []
        for g in range(slot.spec.time_groups):
            mine = (group == g).nonzero().flatten()
            if not len(mine):  # an even stretch of time without a sampled step: as all together
                mine = torch.arange(len(samples))
            rows = choose_rows(samples.take(mine), most, ctx.seed)
            p, val = _seen(graph, (slot.source, value), rows, batch, ctx.device)
            choices.append(self._choice(slot, p, val))
        return choices, edges

    def _choice(self, slot: Slot, p: Tensor, value: Tensor) -> Choice:
        """Of each kind the candidate with the least error: full ranges and searched ones, and every base."""
        one = attrs.evolve(slot, spec=attrs.evolve(slot.spec, time_groups=1, time_split="steps"))
        logs = attrs.evolve(one.spec, format="log")
        own = attrs.evolve(one.spec, format="levels")
        exact, batches = p @ value, partial(_single, p)

        def tried(spec: QuantSpec, params: QParams) -> tuple[float, QParams]:
            rounded = fake_quantize(p, spec, params.tensors, slot.layout)
            return float((rounded @ value - exact).double().square().sum()), params

        def fitted(spec: QuantSpec, *quantizers: Quantizer) -> list[tuple[float, QParams]]:
            return [tried(spec, fit(how, attrs.evolve(one, spec=spec), batches)) for how in quantizers]

        summary = summarise(batches, logs, exact_below=1 << 16, most=1 << 20)
        gap = 0.9 / (SCALES - 1)
        grids = (torch.linspace(1.2, 0.3, SCALES) - 1, torch.linspace(-gap, gap, SCALES))
        powers = [
            tried(logs, log_params(scale, logs, 1 / k))
            for k in self.bases
            for scale in (summary.high, search(summary, logs, 1 / k, grids)[0])
        ]
        kinds = {
            "u": fitted(one.spec, AbsMax(), self.uniform, *self.others),
            "l": powers + fitted(logs, *self.others),
            "o": fitted(own, *self.others),
        }
        best = {kind: min(some, key=lambda one: one[0]) for kind, some in kinds.items() if some}
        return Choice(
            params={kind: params for kind, (_, params) in best.items()},
            errors={kind: error for kind, (error, _) in best.items()},
            verdict=judge(p, self.x_min / p.shape[-1], self.alternative),
        )


def _wanted(slot: Slot) -> bool:
    spec = slot.spec
    plain = spec.format == "int" and spec.granularity == "tensor" and not (spec.dynamic or spec.symmetric)
    return plain and slot.node.target in MATMULS and slot.index == 0 and after_softmax(slot.source)


def _values(
    graph: GraphModule, node: Node, samples: Samples, batch: int, device: torch.device
) -> Iterator[Tensor]:
    """The node's values over all samples, a batch at a time."""
    for inputs in samples.batches(batch, device):
        yield run_recording(graph, (node,), inputs)[node]


def _seen(
    graph: GraphModule, nodes: tuple[Node, Node], samples: Samples, batch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both nodes' values over all samples."""
    kept: list[tuple[Tensor, ...]] = []
    for inputs in samples.batches(batch, device):
        found = run_recording(graph, nodes, inputs)
        kept.append(tuple(found[node].cpu() for node in nodes))
    first, second = zip(*kept, strict=True)
    return torch.cat(first), torch.cat(second)


def first_times(t: Tensor, edges: Tensor | None) -> dict[int, float]:
    """Of each group that a timestep falls in, the first one.

    >>> first_times(torch.tensor([1, 21, 41, 61]), torch.tensor([30.0, 50.0]))
    {0: 1.0, 1: 41.0, 2: 61.0}
    >>> first_times(torch.tensor([0.25, 0.75]), None)
    {0: 0.25}
    """
    times: Tensor = torch.unique(t)
    groups = torch.zeros(len(times), dtype=torch.long) if edges is None else reference.time_group(times, edges)
    return {g: float(times[groups == g].min()) for g in torch.unique(groups).tolist()}


def _single(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield (
        reference.arrange(values, reference.CHANNEL_LAST, "tensor", 0),
        torch.zeros(len(values), dtype=torch.long),
    )


def _letters(choices: list[Choice], criterion: str) -> str:
    return "".join(choice.letter(criterion) for choice in choices)
