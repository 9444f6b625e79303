"""Prints what a quantized model leaves of large values of the noise, and which quantizer takes them, as markdown.

`python tests/benchmarks/tails.py runs/NAME ...`: folders of finished runs. Images are drawn from noise that no pass has
seen. First table: how large values of the last image are before they are clipped; what share of the squared error the
worst thousandth of values has; and how large the noise was there that the image began with, and how often the error
has its sign. Second table: what the output lacks on full precision's way where the input is beyond 3, in percent of
full precision's output there, at the step a tenth of the way down; and the same with clipping undone at all inputs, or
at one alone: the three that change it most.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from finished import Finished, asked, opened
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qpass.kernels import reference
from qpass.sampling.loop import Denoise, Moment

BEYOND = 3.0
WIDE = 10**6  # codes that no value reaches


class Unclipped(Interpreter):
    """Runs a quantized model with these quantizers' grids going on for ever."""

    def __init__(self, graph: GraphModule, nodes: Container[Node]) -> None:
        super().__init__(graph)
        self.nodes = nodes

    def run_node(self, n: Node) -> Any:
        if n not in self.nodes:
            return super().run_node(n)
        (x, scale, zero, _, _, *rest), options = self.fetch_args_kwargs_from_env(n)
        return reference.fake_quantize_affine(x, scale, zero, -WIDE, WIDE, *rest, **options)


def way(run: Finished, denoise: Denoise, images: int) -> list[Moment]:
    return list(run.way(denoise, run.recipe.sampling, stream="tails", images=images))


def about_images(name: str, exact: list[Moment], found: list[Moment]) -> str:
    """A row of the first table."""
    error, noise = (found[-1].after - exact[-1].after).flatten(), found[0].before.flatten()
    worst = error.abs().topk(len(error) // 1000).indices
    share = float(error[worst].square().sum() / error.square().sum())
    agree = float((error[worst].sign() == noise[worst].sign()).double().mean())
    return (
        f"| {name} | {exact[-1].after.abs().max():.1f} | {found[-1].after.abs().max():.1f} | {share:.0%} "
        f"| {noise[worst].abs().mean():.1f} | {agree:.0%} |"
    )


def lacking(exact: Tensor, found: Tensor, x: Tensor) -> float:
    """In percent of the exact output, where the input is large."""
    there, sign = x.abs() > BEYOND, x.sign()
    return float(100 * ((exact - found) * sign)[there].mean() / (exact * sign)[there].mean())


def about_quantizers(run: Finished, step: Moment) -> str:
    """A row of the second table."""
    x = step.inputs[0]
    exact = run.teacher(*step.inputs)
    quantizers = [n for n in run.student.graph.nodes if n.target is reference.fake_quantize_affine]

    def without(nodes: Container[Node]) -> float:
        return lacking(exact, Unclipped(run.student, nodes).run(*step.inputs), x)

    all_of_it = without(())
    alone = sorted(((without({n}), str(n.args[1])) for n in quantizers), key=lambda pair: abs(pair[0]))
    first = ", ".join(f"`{name.removesuffix('_input0_q_scale')}` {left:.1f}" for left, name in alone[:3])
    return f"| {run.name} | {all_of_it:.1f} | {without(set(quantizers)):.1f} | {first} |"


@torch.inference_mode()
def main() -> None:
    options = asked(__doc__)
    later = []
    print(
        "| run | largest value, full precision | quantized | error in the worst 0.1 % | noise there | of its sign |"
    )
    print("|---|---|---|---|---|---|")
    for folder in options.runs:
        run = opened(folder)
        exact = way(run, run.teacher, options.images)
        print(about_images(run.name, exact, way(run, run.student, options.images)), flush=True)
        later.append(about_quantizers(run, exact[len(exact) // 10]))
    print("\n| run | lacking beyond 3 (%) | nothing clipped | one input not clipped |")
    print("|---|---|---|---|")
    print("\n".join(later))


if __name__ == "__main__":
    main()
