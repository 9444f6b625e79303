"""`qpass reference`: statistics of a data set, to compare images with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click

from qpass.cli import options


def _file(ctx: click.Context, param: click.Parameter, out: Path | None) -> Path | None:
    """Refuse, before anything is computed, a file that could not be written after it."""
    if out is not None and out.suffix != ".safetensors":
        raise click.BadParameter(f"{str(out)!r} must end in .safetensors", ctx=ctx, param=param)
    if out is not None and not out.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(out.parent)!r}; create it first", ctx=ctx, param=param)
    return out


@click.command("reference", short_help="Make statistics that images are compared with.", epilog=options.EXIT_CODES)
@click.argument("dataset")
@click.option(
    "--out",
    metavar="FILE.safetensors",
    callback=_file,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; one that is there is replaced.  [default: <name>.safetensors]",
)
@click.option("--name", metavar="NAME", help="What reports call it.  [default: that of the data set]")
@options.resize
@options.precision
@click.option(
    "--metric",
    default="fid",
    show_default=True,
    metavar="NAME",
    help="For which metric: its evaluator says which feature network. That of `fid` serves sfid, kid, precision and "
    "recall too.",
)
@click.option(
    "--keep-features",
    "rows",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Also keep the features of N images spread evenly over the data set, which kid, precision and recall need; "
    "16 kB an image.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="OPTION=VALUE",
    callback=options.key_value,
    help="Any other option of the evaluator, as `qpass show` lists them. May be given several times.",
)
@options.device
@options.plugin
@options.debug
def command(
    dataset: str,
    out: Path | None,
    name: str | None,
    resize: str | None,
    precision: str | None,
    metric: str,
    rows: int,
    overrides: tuple[str, ...],
    device: str,
    plugins: tuple[Path, ...],
) -> None:
    """Compute the statistics of DATASET that FID and its kin need, once, and write them into a file that --against
    takes. DATASET is whatever `qpass measure` reads: a folder of images, an .npy or .npz file, a data set.

    The file carries the feature network's hash, resize and precision, the number of images and a hash of their
    pixels; it is refused where figures would be measured in another way. Images are read one batch at a time, so a
    data set of any size fits.

    \b
    Examples:
      qpass reference photos/ --out photos.safetensors
      qpass reference cifar10-train --resize tensorflow --out cifar10-train-tensorflow.safetensors
      qpass reference torchvision:CIFAR10:data:test --keep-features 5000

    Interrupted, the same command goes on from where it was; until it is done, its checkpoint lies beside FILE in a
    folder FILE.part.
    """
    from qpass.device import select_device
    from qpass.files import write_file
    from qpass.images import open_images
    from qpass.measuring import Bench, measurer, option_names, prepared
    from qpass.progress import for_terminal

    catalog = options.catalog(plugins)
    given = options.assigned(overrides, resize=resize, precision=precision)
    if "against" in option_names(measurer(metric, catalog)):
        given = [(("against",), ""), *given]
    (evaluator,) = prepared((metric,), given, catalog)
    where = select_device(device)
    with for_terminal() as progress:
        images = open_images(dataset, progress.say)
        title = name or images.name
        target = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', title)}.safetensors")
        part = target.with_name(f"{target.name}.part")
        bench = Bench(folder=part, device=where, progress=progress)
        flags = {"--metric": metric if metric != "fid" else None, "--resize": resize, "--precision": precision}
        words = [f"{flag} {value}" for flag, value in flags.items() if value] + [f"--set {o}" for o in overrides]
        about = {"name": title, "rows": rows, "command": " ".join(["qpass reference", dataset, *words])}
        write_file(target, evaluator.reference(images, bench, about))
    shutil.rmtree(part, ignore_errors=True)
    click.echo(str(target))
