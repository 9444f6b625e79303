"""Learn one block: its soft rounding and step sizes, by the error of its outputs, then round for good."""

from __future__ import annotations

import math
import time
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.fx import Node

from qpass.progress import Task
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
    flipped: float  # share of codes that learning changed
    seconds: float
    kept: bool  # False where what was there before was better after all
    half: bool  # whether it learned in bf16


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
    train = train.sort().values
    optimizer = _optimizer(soft, objective)
    module: Any = torch.compile(soft, dynamic=False) if objective.compiled else soft
    layers = soft.roundings()

    def outputs(index: Tensor, inputs: list[Tensor], run: Any, half: bool) -> list[Tensor]:
        with torch.autocast(data.device.type, torch.bfloat16, enabled=half):
            given = run(data.t[index].to(data.device), *inputs)
        return [given[place] for place in targets]

    def loss_of(index: Tensor, ours: list[Tensor], theirs: list[Tensor] | None = None) -> Tensor:
        nodes = [soft.block.outputs[place] for place in targets]
        theirs = [data.target(node, index) for node in nodes] if theirs is None else theirs
        each = zip(ours, theirs, nodes, strict=True)
        return torch.stack([distance(a, b, objective.norm, data.weights.get(node)) for a, b, node in each]).sum()

    @torch.no_grad()
    def measured(of_half: bool = False) -> float:
        """The loss as things stand; `of_half`: that of the outputs in bf16 against those in single precision."""
        soft.eval()
        soft.set(soft=False, activations=objective.activations, drop=0.0)
        total = 0.0
        for index in torch.split(held.sort().values, data.forward):
            inputs = [data.rounded(node, index) for node in soft.block.inputs]
            ours = outputs(index, inputs, soft, False)
            loss = loss_of(index, outputs(index, inputs, soft, True), ours) if of_half else loss_of(index, ours)
            total += float(loss) * len(index)
        return total / len(held)

    before = measured()
    half = objective.half(data.device)
    if half and objective.precision == "auto":
        half = measured(of_half=True) <= BLUR * before
    first = {home: one.codes for home, one in soft.layers.items()}
    scales = [one.scale.detach().clone() for one in soft.learned_steps()]
    done = 0
    with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        soft.train()
        soft.set(soft=True, activations=objective.activations, drop=objective.drop)
        for done in range(1, objective.iterations + 1):
            index = train[batch_of(len(train), objective.batch, draws)]
            inputs = [_mixed(data, node, index, objective.mix) for node in soft.block.inputs]
            loss = loss_of(index, outputs(index, inputs, module, half))
            if objective.decay:
                for group in optimizer.param_groups:
                    group["lr"] = group["first"] * (1 + math.cos(math.pi * (done - 1) / objective.iterations)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            beta = annealed(done - 1, objective.iterations, warmup=objective.warmup)
            if beta is not None:
                for one in layers:
                    press(one.v, beta, objective.strength)
            optimizer.step()
            for quantizer, scale in zip(soft.learned_steps(), scales, strict=True):
                quantizer.scale.data.clamp_(min=scale * LEAST)
            task.advance()
            if objective.settle and layers and beta is not None and done % EVERY == 0 and _settled(soft):
                task.skip(objective.iterations - done)
                break
    flipped = [one.settle() for one in layers]
    after = measured()
    if kept := math.isfinite(after) and after <= before:
        share = sum(flipped) / len(flipped) if flipped else 0.0
    else:
        share = 0.0
        for home, codes in first.items():
            soft.layers[home].give_back(codes)
        with torch.no_grad():
            for quantizer, scale in zip(soft.learned_steps(), scales, strict=True):
                quantizer.scale.copy_(scale)
    return Trace(
        block=soft.block.name, before=before, after=after if kept else before, iterations=done, flipped=share,
        seconds=time.monotonic() - started, kept=kept, half=half,
    )  # fmt: skip


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
        ([one.v for one in soft.roundings()], objective.rate),
        ([one.scale for one in soft.learned_steps()], objective.step_rate),
    ]
    return torch.optim.Adam(
        [{"params": some, "lr": rate, "first": rate} for some, rate in groups if some], fused=True
    )


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
