"""One block after another learns, on the inputs that the blocks before it, already rounded, give.

Only tensors that a later block reads are kept, of the full-precision model and of the rounded one; they are computed
once, rolling forward, so the cost is linear in the number of blocks. Every finished block is a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qpass.activations import Samples
from qpass.errors import PreconditionError, QpassError
from qpass.files import checksum, free_bytes
from qpass.graph import Block, block_module
from qpass.graph.tensors import put
from qpass.kept import keep, kept
from qpass.manager import PassContext
from qpass.memory import return_freed_memory
from qpass.progress import Task, peak_memory_mb, span
from qpass.slots import write_params
from qpass_passes.reconstruction.block import Trace, reconstruct
from qpass_passes.reconstruction.chain import FORWARD, Chain, chain, cut_into
from qpass_passes.reconstruction.fisher import fisher
from qpass_passes.reconstruction.objective import Objective
from qpass_passes.reconstruction.probe import Cost, probe
from qpass_passes.reconstruction.rows import Pool, scratch_pool
from qpass_passes.reconstruction.soft import SoftBlock, softened
from qpass_passes.reconstruction.streams import Streams


@attrs.frozen(kw_only=True, eq=False)
class Reconstruction:
    """A chain of blocks, the whole graph where none are given. `key` stands for all that determines the result.

    `aims` are the rows on which full precision shows what to give, where these are not `samples` too.

    Where there are globs in `match`, only blocks whose name matches one learn; the rest are rolled forward, rounded to
    nearest, and what comes after the last block that learns is not computed at all.
    """

    graph: GraphModule
    samples: Samples
    objective: Objective
    ctx: PassContext
    key: str
    only: tuple[Block, ...] = ()
    match: tuple[str, ...] = ()
    aims: Samples | None = None

    def run(self) -> list[Trace]:
        """Optimize every block that has something to learn; leaves codes and step sizes in the graph."""
        objective, ctx = self.objective, self.ctx
        self.graph.requires_grad_(False)
        parts = self.only or cut_into(self.graph, objective.unit)
        work = self.work(parts)
        if not work:
            return []
        if objective.held_out and len(self.samples) < 2:
            raise PreconditionError(
                "reconstruction needs at least 2 calibration rows, one of them to measure on; raise "
                "calibration.samples"
            )
        parts = parts[: len(work)]
        cut = chain(self.graph, parts, self.samples, ctx.device, self.aims, budget=ctx.memory_budget)
        return_freed_memory()
        costs = probe(self.graph, cut, work, self.samples, objective, ctx.device)
        pool = scratch_pool(ctx, max(cost.memory for cost in costs))
        folder = self._folder(cut, pool)
        self._tell(cut, work, costs, pool, folder)
        streams = Streams(self.graph, cut, self.samples, pool, ctx.device, self.aims)
        weights = self._weights(cut, work)
        traces: list[Trace] = []
        settled: set[str] = set()  # weights that have learned: a layer may be called by several blocks
        each = [cost.iteration for cost in costs]
        units = objective.iterations + objective.polishing
        total, cost = units * sum(map(bool, work)), units * sum(each)
        with pool, ctx.progress.task("reconstruct", total, cost) as task:
            for index, (block, targets) in enumerate(zip(cut.blocks, work, strict=True)):
                task.weigh(each[index])
                file = folder / f"{index:04d}.safetensors"
                if trace := self._step(file, block, targets, streams, weights, settled, task):
                    traces.append(trace)
                streams.drop(cut.dies[index])
        ctx.progress.say(f"  peak memory {peak_memory_mb():.0f} MB")
        return traces

    def _folder(self, cut: Chain, pool: Pool) -> Path:
        """Where finished blocks are kept. Rows on disk are fp16, and small batches round in their own way: with
        either, the budget too has its part in them."""
        _, disk = cut.peaks(len(self.samples), pool.budget)
        name = f"{self.key}-{pool.budget}" if disk or cut.forward < FORWARD else self.key
        return self.ctx.scratch / "reconstruction" / name

    def _tell(
        self, cut: Chain, work: list[tuple[int, ...]], costs: tuple[Cost, ...], pool: Pool, folder: Path
    ) -> None:
        """Say what it will take, before it starts; refuse what the disk has no room for."""
        objective, ctx, count = self.objective, self.ctx, len(self.samples)
        beside = max(cost.memory for cost in costs)
        memory, disk = cut.peaks(count, pool.budget)
        done = {file.stem for file in folder.glob("*.safetensors")}
        left = [i for i, targets in enumerate(work) if targets and f"{i:04d}" not in done]
        seconds = sum(costs[i].iteration for i in left) * (objective.iterations + objective.polishing)
        row = sum(cost.row for cost in costs)
        seconds += 2 * count * row  # the blocks of both models, rolled forward once
        if objective.fisher != "none":
            seconds += 3 * min(objective.fisher_rows, count) * row  # a backward pass takes twice a forward one
        ctx.progress.say(
            f"  {sum(map(bool, work))} of {len(cut.blocks)} {objective.unit}s learn, at most {objective.iterations} "
            f"iterations each, from {count} rows; these take {memory / 1e6:.1f} MB of memory"
            + (f" and {disk / 1e6:.1f} MB of disk" if disk else "")
            + f", learning about {beside / 1e6:.0f} MB more; at most about {span(seconds)} left"
        )
        if beside > ctx.memory_budget:
            ctx.progress.say("  that is more than the memory budget; a smaller 'batch' takes less")
        if disk > (free := free_bytes(pool.folder)):
            raise QpassError(
                f"the rows need {disk / 1e6:.0f} MB of disk and {free / 1e6:.0f} MB are free; free some space, lower "
                "'rows', or raise memory_budget"
            )

    def _weights(self, cut: Chain, work: list[tuple[int, ...]]) -> Mapping[Node, Tensor]:
        if self.objective.fisher == "none":
            return {}
        outputs = [
            block.outputs[place] for block, targets in zip(cut.blocks, work, strict=True) for place in targets
        ]
        seed = _seed(self.ctx.seed, self.key, "fisher")
        found = fisher(
            self.graph, outputs, self.samples, rows=self.objective.fisher_rows, seed=seed, device=self.ctx.device,
            places={node: cut.shapes[node].places for node in outputs},
        )  # fmt: skip
        return {node: weight.to(self.ctx.device) for node, weight in found.items()}

    def work(self, parts: tuple[Block, ...]) -> list[tuple[int, ...]]:
        """Which outputs each block is to give as in full precision, up to the last that has something to learn."""
        rounded: set[str] = set()  # a layer that is called by several blocks learns in the first
        found: list[tuple[int, ...]] = []
        for block in parts:
            found.append(())
            if self.match and not any(fnmatchcase(block.name, glob) for glob in self.match):
                continue
            soft = softened(self.graph, block, self.objective)
            new = {one.slot.home for one in soft.roundings()} - rounded
            if new or soft.learned_steps():
                rounded |= new
                found[-1] = self._targets(block)
        while found and not found[-1]:
            found.pop()
        return found

    def _targets(self, block: Block) -> tuple[int, ...]:
        if self.objective.unit == "layer":
            return tuple(i for i, node in enumerate(block.outputs) if node is block.nodes[-1])
        inside: set[Node] = set()
        for node in block.nodes:
            if node.meta.get("qpass") is not None or not inside.isdisjoint(node.all_input_nodes):
                inside.add(node)
        return tuple(i for i, node in enumerate(block.outputs) if node in inside)

    def _step(
        self,
        file: Path,
        block: Block,
        targets: tuple[int, ...],
        streams: Streams,
        weights: Mapping[Node, Tensor],
        settled: set[str],
        task: Task,
    ) -> Trace | None:
        objective, ctx = self.objective, self.ctx
        return_freed_memory()  # or what the last block took stays beside the rows of this one
        plain = block_module(self.graph, block)
        soft = softened(self.graph, block, objective, settled).to(ctx.device)
        streams.advance_full(block, plain)
        trace = None
        if targets:
            if found := kept(file):
                tensors, about = found
                trace = Trace(**about)
                _restore(soft, tensors)
                task.skip(objective.iterations + objective.polishing)
            else:
                seed = _seed(ctx.seed, self.key, block.name)
                data = attrs.evolve(streams.data(), weights=weights)
                trace = reconstruct(soft, data, objective, targets, seed, task)
                keep(file, _learned(soft), attrs.asdict(trace))
            _leave(self.graph, soft)
            settled |= {one.slot.home for one in soft.roundings()}
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


def _learned(soft: SoftBlock) -> dict[str, Tensor]:
    tensors = {f"codes {one.slot.home}": one.codes for one in soft.roundings()}
    return tensors | {f"scale {one.slot.home}": one.scale.detach() for one in soft.learned_steps()}


def _restore(soft: SoftBlock, tensors: Mapping[str, Tensor]) -> None:
    for one in soft.roundings():
        one.give_back(tensors[f"codes {one.slot.home}"].to(one.codes.device))
    with torch.no_grad():
        for quantizer in soft.learned_steps():
            quantizer.scale.copy_(tensors[f"scale {quantizer.slot.home}"])


def _seed(seed: int, key: str, block: str) -> int:
    return int(checksum({"seed": seed, "key": key, "block": block})[:15], 16)
