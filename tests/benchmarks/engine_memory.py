"""Prints what learning one block takes of memory, above that after loading the model: the engine and a plain loop.

`python tests/benchmarks/engine_memory.py --rows 2048 --budget 512MB`: a block of cifar10-unet whose input is larger
than 128 x 32 x 32. Each is measured in a process of its own, with the calibration rows already there: the plain loop
collects the block's inputs and targets and learns from them, the engine rolls its chain forward to the block and
learns it.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from pathlib import Path

import torch
from engine_table import SEED, scales_of
from plain_loop import Plain
from qpass_passes.assign import Assign
from qpass_passes.fitting import fit_weights
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import Objective, Reconstruction
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qpass.activations import Samples
from qpass.files import temporary_folder
from qpass.graph import block_module, blocks, trace
from qpass.manager import PassContext
from qpass.memory import peak_rise
from qpass.plugins import catalog
from qpass.recipe import bytes_of, read

BLOCK = "up_blocks.2.resnets.0"
CPU = torch.device("cpu")


class Collects(Interpreter):
    """Runs a graph and keeps some of its tensors."""

    def __init__(self, graph: GraphModule, wanted: list[Node]) -> None:
        super().__init__(graph)
        self.found: dict[str, list[Tensor]] = {node.name: [] for node in wanted}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n.name in self.found:
            self.found[n.name].append(value)
        return value


def plain(graph: GraphModule, samples: Samples, iterations: int) -> None:
    """What research code does: inputs of the rounded model and targets of the other, whole, then the loop."""
    block = next(one for one in blocks(graph) if one.name == BLOCK)
    scales = scales_of(graph, block)
    rounded = copy.deepcopy(graph)
    for name, module in rounded.named_modules():
        if (scale := find_scale(graph, name)) is not None:
            module.weight.data = (module.weight / scale).round().clamp(-8, 7) * scale
    with torch.no_grad():
        kept = []
        for model, wanted in ((rounded, list(block.inputs)), (graph, [block.outputs[0]])):
            collects = Collects(model, wanted)
            for inputs in samples.batches(32, CPU):
                collects.run(*inputs)
            kept.append([torch.cat(collects.found.pop(node.name)) for node in wanted])
    (inputs, (target,)) = kept
    torch.manual_seed(SEED)
    Plain(copy.deepcopy(block_module(graph, block)), list(scales), scales).learn(inputs, target, iterations, 32)


def find_scale(graph: GraphModule, name: str) -> Tensor | None:
    """The weight's scale, shaped to it; None where nothing was fitted."""
    weight = getattr(graph.get_submodule(name), "weight", None)
    scale = dict(graph.named_buffers()).get(f"{name}.weight_q.scale")
    return None if scale is None or weight is None else scale.reshape([-1] + [1] * (weight.dim() - 1))


def measured(how: str, options: argparse.Namespace) -> int:
    """Bytes, in this process."""
    known = catalog()
    recipe = read("w4a8", catalog=known, overrides=[f"calibration.samples={-(-options.rows // 20)}"])
    adapter = recipe.model
    teacher = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
    ctx = PassContext(
        model=adapter, reference=teacher, sampling=recipe.sampling, calibration=recipe.calibration, catalog=known,
        memory_budget=bytes_of(options.budget), scratch=Path(temporary_folder()),
    )  # fmt: skip
    graph = Assign(weight="int4 channel", input="int8 tensor").run(teacher, ctx).graph
    fit_weights(graph, Mse(), ctx)
    samples = ctx.get(recipe.calibration, graph)
    samples = samples.take(torch.arange(options.rows))
    if how == "plain":
        return peak_rise(lambda: plain(graph, samples, options.iterations), CPU)
    objective = Objective(iterations=options.iterations, settle=False)
    engine = Reconstruction(
        graph=graph, samples=samples, objective=objective, ctx=ctx, key="memory", match=(BLOCK,)
    )
    return peak_rise(engine.run, CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--budget", default="512MB", help="memory_budget of the engine")
    parser.add_argument("--iterations", type=int, default=20, help="of learning, batch 32")
    parser.add_argument("--how", choices=["plain", "engine"], help="measure one of them in this process")
    options = parser.parse_args()
    if options.how:
        print(measured(options.how, options))
        return
    print("| how | MB |\n|---|---|", flush=True)
    for how in ("plain", "engine"):
        command = [sys.executable, __file__, *sys.argv[1:], "--how", how]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {how} | {int(found.split()[-1]) / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
