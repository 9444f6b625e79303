"""A finished run, with its original in full precision and its quantized model, both as graphs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch
from looks import edges
from torch import Tensor
from torch.fx import GraphModule

from qpass.artifact.folder import load_artifact
from qpass.graph import trace
from qpass.plugins import catalog
from qpass.recipe import Recipe, read
from qpass.sampling import Sampling
from qpass.sampling.loop import Denoise, Moment, trajectory


@attrs.frozen(kw_only=True, eq=False)
class Finished:
    """Images are drawn in units of 1/255, each stream from noise of its own."""

    name: str
    recipe: Recipe
    teacher: GraphModule
    student: GraphModule

    def way(self, denoise: Denoise, sampling: Sampling, *, stream: str, images: int) -> Iterator[Moment]:
        """Step by step, by either model, or by what stands between a model and the sampler."""
        return trajectory(
            denoise, self.recipe.model.sampler(), sampling, seed=0, stream=stream, indices=range(images),
            device=torch.device("cpu"),
        )  # fmt: skip

    def drawn(self, denoise: Denoise, sampling: Sampling, *, stream: str, images: int) -> Tensor:
        """The images at the end of that way."""
        *_, last = self.way(denoise, sampling, stream=stream, images=images)
        return last.after.clamp(-1, 1) * 127.5


def asked(about: str | None, **more: dict[str, object]) -> argparse.Namespace:
    """What the command line says: `runs`, folders, how many `images` to draw of each, and `more` options."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, with recipe.toml and artifact")
    parser.add_argument("--images", type=int, default=64)
    for name, how in more.items():
        parser.add_argument(f"--{name}", **how)
    return parser.parse_args()


def opened(folder: Path) -> Finished:
    """The run in this folder, which holds recipe.toml and artifact."""
    known = catalog()
    recipe = read(folder / "recipe.toml", catalog=known)
    model = recipe.model
    teacher = trace(model.load(), model.example(), call=model.call, dynamic=model.dynamic())
    student = load_artifact(folder / "artifact", known).graph
    return Finished(name=folder.name, recipe=recipe, teacher=teacher, student=student)


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, over all images."""
    return float(10 * torch.log10(255**2 / (a - b).square().mean()))


def grain(images: Tensor) -> float:
    """Of images as `drawn`: how far a value is from the mean of its four neighbours, root mean square."""
    return edges(images.permute(0, 2, 3, 1).double().numpy())
