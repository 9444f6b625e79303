"""Prints Inception features per second of qpass, pytorch-fid and torch-fidelity, as markdown.

`python tests/benchmarks/features_speed.py --images 64`: one process, the same cores and images, the same weights in
every tool's own classes, from uint8 arrays to features. Each tool first tries threads and batch sizes; then all take
turns at their best, and the ratios are those of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch
from qpass_evaluators.networks import Inception

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluators" / "networks"))
import peers

Extract = Callable[[np.ndarray], object]
PEERS = ("pytorch-fid", "torch-fidelity", "torch-fidelity compiled")


@attrs.frozen
class Setting:
    threads: int
    batch: int


def ours(precision: str, resize: str) -> Callable[[int], Extract]:
    """Batches are the network's own."""
    network = Inception(precision=precision, resize=resize)
    return lambda batch: network.features


def peer(net: torch.nn.Module, convert: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int], Extract]:
    """A peer's network, fed planes in batches, as its own loader feeds it."""

    def at(batch: int) -> Extract:
        def run(images: np.ndarray) -> None:
            for some in torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().split(batch):
                net(convert(some))

        return run

    return at


def tools(compiled: bool) -> dict[str, Callable[[int], Extract]]:
    made = {
        "qpass float32": ours("float32", "pytorch"),
        "qpass float32, tensorflow": ours("float32", "tensorflow"),
        "qpass bfloat16": ours("bfloat16", "pytorch"),
        "qpass bfloat16, tensorflow": ours("bfloat16", "tensorflow"),
        "pytorch-fid": peer(peers.pytorch_fid(), lambda x: x.float() / 255),
        "torch-fidelity": peer(peers.torch_fidelity(), lambda x: x),
    }
    if compiled:
        made["torch-fidelity compiled"] = peer(torch.compile(peers.torch_fidelity()), lambda x: x)
    return made


def rate(extract: Extract, images: np.ndarray, threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    extract(images)
    return len(images) / (time.perf_counter() - start)


def best(tool: Callable[[int], Extract], images: np.ndarray, settings: list[Setting]) -> Setting:
    """The setting with most images a second; each is tried twice, the first of which also warms it up."""
    rates = {s: max(rate(tool(s.batch), images, s.threads) for _ in range(2)) for s in settings}
    return max(rates, key=rates.__getitem__)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64, help="in each timed turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=numbers, default=[1, torch.get_num_threads()], help="to try, as 1,2")
    parser.add_argument("--batches", type=numbers, default=[1, 4, 16, 50], help="for the peers to try")
    parser.add_argument("--compiled", type=int, default=0, help="1: torch-fidelity through torch.compile, too")
    options = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    made, chosen = tools(bool(options.compiled)), {}
    for name, tool in made.items():
        batches = options.batches if name in PEERS else [Inception.batch]
        batches = [options.images] if name.endswith("compiled") else batches  # one shape: compiled once
        settings = [Setting(t, b) for t in sorted(set(options.threads)) for b in batches]
        chosen[name] = best(tool, images, settings)
    rates: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(options.rounds):
        for name, tool in made.items():
            rates[name].append(rate(tool(chosen[name].batch), images, chosen[name].threads))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    found = [name for name in PEERS if name in made]
    print("| tool | threads | batch | images a second | " + " | ".join(f"x {name}" for name in found) + " |")
    print("|" + " --- |" * (4 + len(found)))
    for name, value in middle.items():
        ratios = " | ".join(f"{value / middle[other]:.2f}" for other in found)
        setting = chosen[name]
        print(f"| {name} | {setting.threads} | {setting.batch} | {value:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
