"""One block after another learns, on the inputs that the blocks before it, already rounded, give.

Only tensors that a later block reads are kept, of the full-precision model and of the rounded one; they are computed
once, rolling forward, so the cost is linear in the number of blocks. Every finished block is a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples
from qpass.files import checksum, write_file
from qpass.graph import Block, block_module
from qpass.graph.tensors import put
from qpass.manager import PassContext
from qpass.progress import Task, peak_memory_mb
from qpass.slots import write_params
from qpass_passes.reconstruction.chain import chain, cut_into
from qpass_passes.reconstruction.objective import Objective, distance
from qpass_passes.reconstruction.rows import scratch_pool
from qpass_passes.reconstruction.soft import SoftBlock
from qpass_passes.reconstruction.streams import FORWARD, Data, Streams
from qpass_passes.soft_rounding import annealed, regularizer

HELD_OUT = 128  # rows, at most, on which a block's loss is measured and which it does not learn from
EVERY = 50  # iterations between two looks at whether anything is left to learn


@attrs.frozen(kw_only=True)
class Trace:
    """What happened to one block. Losses are of hard rounding, on rows it did not learn from."""

    block: str
    before: float
    after: float
    iterations: int
    flipped: float  # share of weights not rounded to nearest
    seconds: float
    kept: bool  # False where rounding to nearest was better after all


def reconstruct(
    soft: SoftBlock, data: Data, objective: Objective, targets: tuple[int, ...], seed: int, task: Task
) -> Trace:
    """Learn one block's rounding and step sizes. `targets` are the outputs that the loss is of, by place."""
    started = time.monotonic()
    draws = torch.Generator().manual_seed(seed)
    # rows come ordered by timestep, and both kinds are to have some of each
    shuffled = torch.randperm(data.count, generator=draws)
    apart = max(1, min(HELD_OUT, data.count // 8))
    held, train = shuffled[:apart], shuffled[apart:]
    optimizer = _optimizer(soft, objective)
    module: Any = torch.compile(soft, dynamic=False) if objective.compiled else soft
    layers = soft.roundings()

    def loss_of(index: Tensor, inputs: list[Tensor], run: Any) -> Tensor:
        given = run(data.t[index].to(data.device), *inputs)
        wanted = [data.target(soft.block.outputs[place], index) for place in targets]
        pairs = zip((given[place] for place in targets), wanted, strict=True)
        return torch.stack([distance(ours, theirs, objective.norm) for ours, theirs in pairs]).sum()

    @torch.no_grad()
    def measured() -> float:
        soft.eval()
        soft.set(soft=False, activations=objective.activations, drop=0.0)
        total = 0.0
        for index in torch.split(held.sort().values, FORWARD):
            inputs = [data.rounded(node, index) for node in soft.block.inputs]
            total += float(loss_of(index, inputs, soft)) * len(index)
        return total / len(held)

    before = measured()
    nearest = {home: one.codes for home, one in soft.layers.items()}
    scales = [one.scale.detach().clone() for one in soft.learned_steps()]
    done = 0
    with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        soft.train()
        soft.set(soft=True, activations=objective.activations, drop=objective.drop)
        for done in range(1, objective.iterations + 1):
            index = train[torch.randint(len(train), (min(objective.batch, len(train)),), generator=draws)]
            inputs = [_mixed(data, node, index, objective.mix) for node in soft.block.inputs]
            with torch.autocast(data.device.type, torch.bfloat16, enabled=objective.precision == "bfloat16"):
                loss = loss_of(index, inputs, module)
            beta = annealed(done - 1, objective.iterations, warmup=objective.warmup)
            if beta is not None:
                for one in layers:
                    loss = loss + objective.strength * regularizer(one.v, beta)
            if objective.decay:
                for group in optimizer.param_groups:
                    group["lr"] = group["first"] * (1 + math.cos(math.pi * (done - 1) / objective.iterations)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            task.advance()
            if objective.settle and layers and beta is not None and done % EVERY == 0 and _settled(soft):
                task.advance(objective.iterations - done)
                break
    flipped = [one.settle() for one in layers]
    after = measured()
    if kept := after <= before:
        share = sum(flipped) / len(flipped) if flipped else 0.0
    else:
        share = 0.0
        for home, codes in nearest.items():
            soft.layers[home].give_back(codes)
        with torch.no_grad():
            for quantizer, scale in zip(soft.learned_steps(), scales, strict=True):
                quantizer.scale.copy_(scale)
    return Trace(
        block=soft.block.name, before=before, after=min(before, after), iterations=done, flipped=share,
        seconds=time.monotonic() - started, kept=kept,
    )  # fmt: skip


def _optimizer(soft: SoftBlock, objective: Objective) -> torch.optim.Optimizer:
    groups = [
        ([one.v for one in soft.roundings()], objective.rate),
        ([one.scale for one in soft.learned_steps()], objective.step_rate),
    ]
    return torch.optim.Adam([{"params": some, "lr": rate, "first": rate} for some, rate in groups if some])


def _mixed(data: Data, node: Node, index: Tensor, mix: float) -> Tensor:
    """Inputs as the rounded model gives them, with a random share of their values in full precision."""
    rounded = data.rounded(node, index)
    if mix == 0 or not rounded.is_floating_point():
        return rounded
    full = data.full(node, index)
    return full if mix == 1 else torch.where(torch.rand_like(rounded) < mix, full, rounded)


def _settled(soft: SoftBlock) -> bool:
    """Whether at most one rounding variable in a thousand is undecided."""
    every = sum(one.v.numel() for one in soft.roundings())
    return sum(one.undecided() for one in soft.roundings()) * 1000 <= every


@attrs.frozen(kw_only=True, eq=False)
class Reconstruction:
    """A chain of blocks, the whole graph where none are given. `key` stands for all that determines the result."""

    graph: GraphModule
    samples: Samples
    objective: Objective
    ctx: PassContext
    key: str
    only: tuple[Block, ...] = ()

    def run(self) -> list[Trace]:
        """Optimize every block that has something to learn; leaves codes and step sizes in the graph."""
        objective, ctx = self.objective, self.ctx
        self.graph.requires_grad_(False)
        cut = chain(self.graph, self.only or cut_into(self.graph, objective.unit), self.samples, ctx.device)
        pool = scratch_pool(ctx)
        work = [self._targets(block) for block in cut.blocks]
        need = cut.peak_bytes(len(self.samples))
        spilt = max(0, need - pool.budget)
        ctx.progress.say(
            f"  {sum(map(bool, work))} of {len(cut.blocks)} {objective.unit}s learn, at most {objective.iterations} "
            f"iterations each, from {len(self.samples)} rows; they take {need / 1e6:.0f} MB"
            + (f", of which about {spilt / 2e6:.0f} MB on disk in fp16" if spilt else "")
        )
        streams = Streams(self.graph, cut, self.samples, pool, ctx.device)
        traces: list[Trace] = []
        with pool, ctx.progress.task("reconstruct", objective.iterations * sum(map(bool, work))) as task:
            for index, (block, targets) in enumerate(zip(cut.blocks, work, strict=True)):
                if trace := self._step(index, block, targets, streams, task):
                    traces.append(trace)
                streams.drop(cut.dies[index])
        ctx.progress.say(f"  peak memory {peak_memory_mb():.0f} MB")
        return traces

    def _targets(self, block: Block) -> tuple[int, ...]:
        """Which outputs the block is to give as in full precision; none where it has nothing to learn."""
        soft = SoftBlock(self.graph, block, weights=self.objective.weights, steps=self.objective.steps)
        if not (soft.roundings() or soft.learned_steps()):
            return ()
        if self.objective.unit == "layer":
            return tuple(i for i, node in enumerate(block.outputs) if node is block.nodes[-1])
        inside: set[Node] = set()
        for node in block.nodes:
            if node.meta.get("qpass") is not None or not inside.isdisjoint(node.all_input_nodes):
                inside.add(node)
        return tuple(i for i, node in enumerate(block.outputs) if node in inside)

    def _step(
        self, index: int, block: Block, targets: tuple[int, ...], streams: Streams, task: Task
    ) -> Trace | None:
        objective, ctx = self.objective, self.ctx
        plain = block_module(self.graph, block)
        soft = SoftBlock(self.graph, block, weights=objective.weights, steps=objective.steps).to(ctx.device)
        streams.advance_full(block, plain)
        trace = None
        if targets:
            file = ctx.scratch / "reconstruction" / self.key / f"{index:04d}.safetensors"
            if kept := load(file):
                trace, tensors = kept
                _restore(soft, tensors)
                task.advance(objective.iterations)
            else:
                seed = _seed(ctx.seed, self.key, block.name)
                trace = reconstruct(soft, streams.data(), objective, targets, seed, task)
                write_file(file, _saved(soft, trace))
            _leave(self.graph, soft)
        soft.eval()
        soft.set(soft=False, activations=objective.activations, drop=0.0)
        streams.advance_rounded(block, soft)
        return trace


def _leave(graph: GraphModule, soft: SoftBlock) -> None:
    """Write what was learned into the graph, where `simulate` and `deploy` find it."""
    for one in soft.roundings():
        put(graph, f"{one.slot.home}.codes", one.codes)
    for quantizer in soft.learned_steps():
        for slot in quantizer.slots:
            assert quantizer.params is not None
            write_params(graph, slot, attrs.evolve(quantizer.params, tensors=quantizer.tensors()))


def _saved(soft: SoftBlock, trace: Trace) -> bytes:
    tensors = {f"codes {one.slot.home}": one.codes for one in soft.roundings()}
    tensors |= {f"scale {one.slot.home}": one.scale.detach() for one in soft.learned_steps()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    content: bytes = save(tensors, metadata={"trace": json.dumps(attrs.asdict(trace)), "hash": _hash(tensors)})
    return content


def _restore(soft: SoftBlock, tensors: Mapping[str, Tensor]) -> None:
    for one in soft.roundings():
        one.give_back(tensors[f"codes {one.slot.home}"].to(one.codes.device))
    with torch.no_grad():
        for quantizer in soft.learned_steps():
            quantizer.scale.copy_(tensors[f"scale {quantizer.slot.home}"])


def load(file: Path) -> tuple[Trace, dict[str, Tensor]] | None:
    """A finished block, if it is there and whole."""
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        if about["hash"] != _hash(tensors):
            return None
        return Trace(**json.loads(about["trace"])), tensors
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def _hash(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].numpy().tobytes())
    return total.hexdigest()


def _seed(seed: int, key: str, block: str) -> int:
    return int(checksum({"seed": seed, "key": key, "block": block})[:15], 16)
