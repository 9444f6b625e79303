"""Learn one block: its soft rounding and step sizes, by the error of its outputs, then round for good."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.fx import Node

from qpass.progress import Task
from qpass_passes.reconstruction.balance import LOOKED_AT, balancing
from qpass_passes.reconstruction.descent import View, polish
from qpass_passes.reconstruction.gradients import press, random_mask
from qpass_passes.reconstruction.objective import Objective, distance
from qpass_passes.reconstruction.soft import SoftBlock
from qpass_passes.reconstruction.streams import Data
from qpass_passes.soft_rounding import annealed

HELD_OUT = 128  # rows, at most, on which a block's loss is measured and which it does not learn from
LEAST = 0.01  # of its first value: a step size that learns at a rate above itself would pass 0
BLUR = 0.01  # of a block's loss, at most, may be the error of bf16 itself where `auto` is to take it
EVERY = 50  # iterations between two looks at whether anything is left to learn


@attrs.frozen(kw_only=True)
class Trace:
    """What happened to one block. Losses are of hard rounding, on rows that were held out where any were."""

    block: str
    before: float
    after: float
    iterations: int
    flipped: float  # share of codes that changed
    seconds: float
    kept: bool  # False where what was there before was better after all
    half: bool  # whether it learned in bf16
    unpolished: float = 0.0  # the loss that polishing began at; 0 where none was, or it did not help


def reconstruct(
    soft: SoftBlock, data: Data, objective: Objective, targets: tuple[int, ...], seed: int, task: Task
) -> Trace:
    """Learn one block's rounding and step sizes. `targets` are the outputs that the loss is of, by place."""
    started = time.monotonic()
    draws = torch.Generator().manual_seed(seed)
    # rows come ordered by timestep, and both kinds are to have some of each
    shuffled = torch.randperm(data.count, generator=draws)
    apart = max(1, min(HELD_OUT, data.count // 8))
    held, train = (shuffled[:apart], shuffled[apart:]) if objective.held_out else (shuffled, shuffled)
    judge = _Judge(soft=soft, data=data, objective=objective, targets=targets, held=held.sort().values)
    train = train.sort().values
    if objective.balance:
        judge = attrs.evolve(judge, rows=judge.balanced(train))

    before = judge.measured()
    half = objective.half(data.device)
    if half and objective.precision == "auto":
        half = judge.measured(of_half=True) <= BLUR * before
    first = _State.of(soft)
    with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        done = _learn(judge, train, half, draws, task)
    after = judge.measured()
    if not (kept := math.isfinite(after) and after <= before):
        after = before
        first.give_back(soft)

    unpolished = 0.0
    if objective.polish and soft.roundings():
        learned = _State.of(soft)
        view = judge.view(train, draws)
        for one in reversed(soft.roundings()):
            polish(one, view, objective.polish)
        task.advance(objective.polishing)
        if (better := judge.measured()) < after:
            unpolished, after, kept = after, better, True
        else:
            learned.give_back(soft)
    return Trace(
        block=soft.block.name, before=before, after=after, iterations=done, flipped=first.flipped(soft),
        seconds=time.monotonic() - started, kept=kept, half=half, unpolished=unpolished,
    )  # fmt: skip


@attrs.frozen(kw_only=True, eq=False)
class _Judge:
    """Runs a block on rows, and compares what it gives with what it should."""

    soft: SoftBlock
    data: Data
    objective: Objective
    targets: tuple[int, ...]
    held: Tensor
    rows: Mapping[Node, Tensor] = attrs.field(factory=dict)  # how each row counts, where not all alike

    @property
    def nodes(self) -> list[Node]:
        return [self.soft.block.outputs[place] for place in self.targets]

    def inputs(self, index: Tensor) -> list[Tensor]:
        return [self.data.rounded(node, index) for node in self.soft.block.inputs]

    def outputs(self, index: Tensor, inputs: list[Tensor], run: Any = None, half: bool = False) -> list[Tensor]:
        with torch.autocast(self.data.device.type, torch.bfloat16, enabled=half):
            given = (self.soft if run is None else run)(self.data.t[index].to(self.data.device), *inputs)
        return [given[place] for place in self.targets]

    def wanted(self, index: Tensor) -> list[Tensor]:
        return [self.data.target(node, index) for node in self.nodes]

    def loss(self, index: Tensor, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        each = zip(ours, theirs, self.nodes, strict=True)
        norm = self.objective.norm
        return torch.stack([distance(a, b, norm, self.weight(node, index)) for a, b, node in each]).sum()

    def weight(self, node: Node, index: Tensor) -> Tensor | None:
        """How the errors of these rows count, element by element; None where all count alike."""
        fisher, rows = self.data.weights.get(node), self.rows.get(node)
        if rows is None:
            return fisher
        each = self.data.each(node, rows[index])
        return each if fisher is None else each * fisher

    @torch.no_grad()
    def balanced(self, train: Tensor) -> dict[Node, Tensor]:
        """For each row a power of the error that its timestep begins with; what all begin with stays as it is.

        Late steps may begin with a hundred times the error of the first, on which the image hangs.
        """
        self.hard()
        times, step = torch.unique(self.data.t, return_inverse=True)
        some = train[torch.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).long()]
        error = torch.full((len(self.nodes), len(times)), math.nan)
        for place in torch.unique(step[some]):
            index = some[step[some] == place]
            ours, theirs = self.outputs(index, self.inputs(index)), self.wanted(index)
            each = [distance(a, b, self.objective.norm) for a, b in zip(ours, theirs, strict=True)]
            error[:, place] = torch.stack(each).cpu()
        power = self.objective.balance
        return {node: balancing(one, power)[step] for node, one in zip(self.nodes, error, strict=True)}

    @torch.no_grad()
    def measured(self, of_half: bool = False) -> float:
        """The loss as things stand; `of_half`: that of the outputs in bf16 against those in single precision."""
        self.hard()
        total = 0.0
        for index in torch.split(self.held, self.data.forward):
            inputs = self.inputs(index)
            ours = self.outputs(index, inputs)
            pair = (self.outputs(index, inputs, half=True), ours) if of_half else (ours, self.wanted(index))
            total += float(self.loss(index, *pair)) * len(index)
        return total / len(self.held)

    def hard(self) -> None:
        """Round as the finished model will."""
        self.soft.eval()
        self.soft.set(soft=False, activations=self.objective.activations, drop=0.0)

    def view(self, rows: Tensor, draws: torch.Generator) -> View:
        """What polishing is to see of the block. Rows of one timestep are a group: gates depend on it."""

        def apart(index: Tensor, ours: list[Tensor]) -> list[tuple[Tensor, Tensor | float]]:
            each = zip(ours, self.wanted(index), self.nodes, strict=True)
            found = [(a.float() - b.float(), self.weight(node, index)) for a, b, node in each]
            return [(off, 1.0 if weight is None else weight) for off, weight in found]

        def run(index: Tensor) -> list[Tensor]:
            return self.outputs(index, self.inputs(index))

        self.hard()
        group = torch.unique(self.data.t, return_inverse=True)[1]
        return View(run=run, apart=apart, rows=rows, batch=self.objective.batch, group=group, draws=draws)


@attrs.frozen(eq=False)
class _State:
    """What a block has learned so far."""

    codes: dict[str, Tensor]
    scales: list[Tensor]

    @classmethod
    def of(cls, soft: SoftBlock) -> _State:
        scales = [one.scale.detach().clone() for one in soft.learned_steps()]
        return cls({home: one.codes for home, one in soft.layers.items()}, scales)

    @torch.no_grad()
    def give_back(self, soft: SoftBlock) -> None:
        for home, codes in self.codes.items():
            soft.layers[home].give_back(codes)
        for quantizer, scale in zip(soft.learned_steps(), self.scales, strict=True):
            quantizer.scale.copy_(scale)

    def flipped(self, soft: SoftBlock) -> float:
        """The share of codes that are others now, over the layers that learn."""
        shares = [float((one.codes != self.codes[one.slot.home]).float().mean()) for one in soft.roundings()]
        return sum(shares) / len(shares) if shares else 0.0


def _learn(judge: _Judge, train: Tensor, half: bool, draws: torch.Generator, task: Task) -> int:
    """Learn from these rows and round for good; returns how many iterations it took."""
    soft, data, objective = judge.soft, judge.data, judge.objective
    optimizer = _optimizer(soft, objective)
    module: Any = torch.compile(soft, dynamic=False) if objective.compiled else soft
    layers, steps = soft.roundings(), soft.learned_steps()
    least = [one.scale.detach() * LEAST for one in steps]
    soft.train()
    soft.set(soft=True, activations=objective.activations, drop=objective.drop)
    done = 0
    for done in range(1, objective.iterations + 1):
        index = train[batch_of(len(train), objective.batch, draws)]
        inputs = [_mixed(data, node, index, objective.mix) for node in soft.block.inputs]
        loss = judge.loss(index, judge.outputs(index, inputs, module, half), judge.wanted(index))
        for group in optimizer.param_groups:
            if group["falls"]:
                group["lr"] = objective.step_rate * (1 + math.cos(math.pi * (done - 1) / objective.iterations)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        beta = annealed(done - 1, objective.iterations, warmup=objective.warmup)
        if beta is not None:
            for one in layers:
                press(one.v, beta, objective.strength)
        optimizer.step()
        for quantizer, scale in zip(steps, least, strict=True):
            quantizer.scale.data.clamp_(min=scale)
        task.advance()
        if objective.settle and layers and beta is not None and done % EVERY == 0 and _settled(soft):
            task.skip(objective.iterations - done)
            break
    for one in layers:
        one.settle()
    return done


def batch_of(count: int, batch: int, draws: torch.Generator) -> Tensor:
    """Which of `count` rows make a batch: one at random from each of as many equal stretches as the batch has rows.

    Rows come ordered by timestep, so every batch has all timesteps in like shares; drawn anywhere, some would be in it
    twice and others not at all, and how large an error is differs much between them.
    """
    size = min(batch, count)
    places = (torch.arange(size) + torch.rand(size, generator=draws, dtype=torch.float64)) * (count / size)
    return places.long().clamp_(max=count - 1)


def _optimizer(soft: SoftBlock, objective: Objective) -> torch.optim.Optimizer:
    groups = [
        {"params": [one.v for one in soft.roundings()], "lr": objective.rate, "falls": False},
        {
            "params": [one.scale for one in soft.learned_steps()],
            "lr": objective.step_rate,
            "falls": objective.step_decay,
        },
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], fused=True)


def _mixed(data: Data, node: Node, index: Tensor, mix: float) -> Tensor:
    """Inputs as the rounded model gives them, with a random share of their values in full precision."""
    rounded = data.rounded(node, index)
    if mix == 0 or not rounded.is_floating_point():
        return rounded
    full = data.full(node, index)
    return full if mix == 1 else torch.lerp(full, rounded, random_mask(rounded, mix))


def _settled(soft: SoftBlock) -> bool:
    """Whether at most one rounding variable in a thousand is undecided."""
    every = sum(one.v.numel() for one in soft.roundings())
    return sum(one.undecided() for one in soft.roundings()) * 1000 <= every
