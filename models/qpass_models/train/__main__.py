"""The command line of training: `python -m qpass_models.train NAME`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from torch import nn

from qpass import progress
from qpass.cli.failures import interrupted, report
from qpass.cli.options import Name, debug
from qpass.device import select_device
from qpass.errors import ModelError
from qpass_models.train.average import Average
from qpass_models.train.cifar10 import Pictures, read
from qpass_models.train.export import WEIGHTS, export, load_weights
from qpass_models.train.jobs import JOBS, ClassifierJob
from qpass_models.train.loop import Budget, train
from qpass_models.train.state import Settings, State, misfit
from qpass_models.zoo import ZOO


@click.command()
@click.argument("name", type=Name("model", tuple(JOBS)))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with CIFAR-10; by default QPASS_DATA/cifar10."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; by default runs/train/NAME.")
@click.option(
    "--init", type=click.Path(path_type=Path), help="Go on from this folder's weights, or from `shipped`."
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this many minutes of training."
)
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps; by default the job's own.")
@click.option("--batch", type=click.IntRange(min=1), help="Images per step; by default the job's own.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Learning rate; by default the job's own."
)
@click.option("--average", type=click.FloatRange(0, 1), help="Decay of the average of the weights.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights and of every batch.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--compile/--eager", "compiled", default=None, help="Compile the network; by default where it pays.")
@debug
def main(
    name: str, data: Path | None, out: Path | None, init: Path | None, minutes: float | None, steps: int | None,
    batch: int | None, rate: float | None, average: float | None, seed: int, device: str, compiled: bool | None,
) -> None:  # fmt: skip
    """Train a model of the zoo on CIFAR-10.

    The same command resumes where it stopped. With --minutes the learning rate falls towards the end of that time;
    without, towards the last step. OUT/model is the diffusers folder, OUT/log.jsonl the losses.
    """
    job, folder = JOBS[name], out or Path("runs/train") / name
    place = select_device(device)
    torch.manual_seed(seed)
    settings = Settings(
        seed=seed,
        batch=batch or job.batch,
        rate=rate or job.rate,
        average=job.average if average is None else average,
        init=str(init) if init else None,
    )
    network = job.build()
    if init:
        _begin(network, name, init)
    network = network.to(place).to(memory_format=torch.channels_last)
    # diffusers' embedders drop labels by themselves while training, each block for itself; the job does it once
    network.train(isinstance(job, ClassifierJob))
    state = State(
        network=network,
        average=Average(network, settings.average),
        optimizer=torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=job.decay, fused=True),
        settings=settings,
    )
    pictures = read(data, "train")
    pictures = Pictures(images=pictures.images.to(place), labels=pictures.labels.to(place))
    budget = Budget(steps=steps or job.steps, minutes=minutes)
    with progress.for_terminal() as shown:
        train(
            job, state, pictures, budget, folder=folder,
            compiled=(job.compiles or place.type == "cuda") if compiled is None else compiled, progress=shown,
        )  # fmt: skip
    card = {
        "data": "CIFAR-10 train, 50,000 images, mirrored at random",
        "command": "python -m qpass_models.train " + " ".join(sys.argv[1:]),
        "init": settings.init or "none",
        "steps": state.step,
        "batch": settings.batch,
        "minutes": round(state.seconds / 60, 1),
        "device": "cpu" if place.type == "cpu" else torch.cuda.get_device_name(place),
        "loss": round(state.loss, 5),
        "seed": settings.seed,
        "precision": "bf16 autocast, averaged weights stored in fp16",
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    export(job, state, card, folder / "model")
    click.echo(f"wrote {folder / 'model'}", err=True)


def _begin(network: nn.Module, name: str, init: Path) -> None:
    """Give the network the weights that a training of the same model left in a folder."""
    source = ZOO / name if str(init) == "shipped" else init
    if not (source / WEIGHTS).is_file():
        raise ModelError(
            f"--init: no {WEIGHTS} in {str(source)!r}; give a folder that a training of {name!r} wrote"
        )
    weights = load_weights(source)
    if reason := misfit(network, weights):
        raise ModelError(
            f"--init: what {str(source)!r} holds is no {name!r}: {reason}; give a folder that a training of it wrote"
        )
    network.load_state_dict(weights)


if __name__ == "__main__":
    try:
        main(prog_name="python -m qpass_models.train", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(interrupted("run"))
    except Exception as error:
        sys.exit(report(error, debug="--debug" in sys.argv))
