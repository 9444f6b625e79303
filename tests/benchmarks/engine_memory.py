"""Prints what learning one block takes of memory, above that after loading the model: the engine and a plain loop.

`python tests/benchmarks/engine_memory.py --rows 2048 --budget 512MB`: the last up block of a UNet with random weights,
128 channels wide, that reads a concatenation of 256 x 32 x 32 and gives 128 x 32 x 32. Each is measured in a process of
its own, with the rows, which are noise, already there: the plain loop collects the block's inputs and targets and
learns from them, the engine rolls its chain forward to the block and learns it.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import UNet2DModel
from engine_table import SEED, grids_of
from plain_loop import Plain
from qpass_models.in_memory import InMemory
from qpass_passes.assign import Assign
from qpass_passes.calibration.uniform_steps import UniformSteps
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
from qpass.quantizer import fake_quantize
from qpass.recipe import bytes_of
from qpass.sampling import Sampling
from qpass.slots import read_params, slots, weight_of

BLOCK, WIDTH = "up_blocks.1.resnets.0", 128
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
    rounded = copy.deepcopy(graph)
    for slot in slots(graph):
        if slot.index < 0:
            params = read_params(graph, slot)
            weight = weight_of(rounded, slot)
            assert params is not None
            weight.data = fake_quantize(weight, slot.spec, params.tensors, slot.layout)
    with torch.no_grad():
        kept = []
        for model, wanted in ((rounded, list(block.inputs)), (graph, [block.outputs[0]])):
            collects = Collects(model, wanted)
            for inputs in samples.batches(32, CPU):
                collects.run(*inputs)
            kept.append([torch.cat(collects.found.pop(node.name)) for node in wanted])
    (inputs, (target,)) = kept
    torch.manual_seed(SEED)
    Plain(copy.deepcopy(block_module(graph, block)), grids_of(graph, block)).learn(inputs, target, iterations, 32)


def measured(how: str, options: argparse.Namespace) -> int:
    """Bytes, in this process."""
    torch.manual_seed(SEED)
    module = UNet2DModel(
        sample_size=32, block_out_channels=(WIDTH, WIDTH), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    adapter = InMemory(module=module.eval())
    teacher = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
    ctx = PassContext(
        model=adapter, reference=teacher, sampling=Sampling(), calibration=UniformSteps(), catalog=catalog(),
        memory_budget=bytes_of(options.budget), scratch=Path(temporary_folder()),
    )  # fmt: skip
    graph = Assign(weight="int4 channel", input="int8 tensor").run(teacher, ctx).graph
    fit_weights(graph, Mse(), ctx)
    samples = Samples(inputs=(torch.randn(options.rows, 3, 32, 32), torch.randint(0, 1000, (options.rows,))))
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
