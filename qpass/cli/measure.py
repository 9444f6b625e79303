"""`qpass measure`: figures of anyone's images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qpass.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from qpass.evaluator import Metric


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not names:
        raise click.BadParameter("name at least one metric, as in fid,sfid", ctx=ctx, param=param)
    return names


@click.command("measure", short_help="Measure images: FID, KID and the like.", epilog=options.EXIT_CODES)
@click.argument("images")
@click.option(
    "--against", metavar="REFERENCE|IMAGES", help="What they are compared with; see below. Scores need nothing."
)
@click.option(
    "--metrics",
    default="fid",
    show_default=True,
    metavar="NAME,...",
    callback=_names,
    help="Which metrics; an unknown name is answered with the known ones.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="N", help="Measure the first N images.  [default: all]"
)
@options.resize
@options.precision
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of random subsets (kid) and orders (is).  [default: 2020]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="[EVALUATOR.]OPTION=VALUE",
    callback=options.key_value,
    help="Any other option of an evaluator, as `qpass show` lists them. May be given several times.",
)
@click.option(
    "--work",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep features here: what one command has looked at, none that is given the same folder looks at again.  "
    "[default: kept nowhere]",
)
@options.as_json
@options.device
@options.plugin
@options.debug
def command(
    images: str,
    against: str | None,
    metrics: tuple[str, ...],
    samples: int | None,
    resize: str | None,
    precision: str | None,
    seed: int | None,
    overrides: tuple[str, ...],
    work: Path | None,
    as_json: bool,
    device: str,
    plugins: tuple[Path, ...],
) -> None:
    """Measure IMAGES: a folder of PNG, JPEG or WebP files (with the folders below it), an .npy or .npz file of uint8
    N x H x W x 3, torchvision:CLASS:ROOT[:SPLIT], datasets:FOLDER[:SPLIT], or cifar10-train and cifar10-test from the
    folder in QPASS_DATA.

    --against takes the same, or a reference: the name of one that ships (cifar10-train), or a file that `qpass
    reference` wrote. Several metrics share one pass over the images.

    \b
    Examples:
      qpass measure my-images/ --against cifar10-train --metrics fid,sfid
      qpass measure a.npz --against b.npz --metrics fid,kid,precision,recall --resize tensorflow
      qpass measure my-images/ --against cifar10-test --metrics kid --work features
      qpass measure my-images/ --metrics is --set weights=inception.pth --json

    \b
    JSON holds
      metrics    name, value, better, unit, subject and protocol of each; the protocol is all that
                 determines the value: figures compare only where it is the same
    """
    import json

    import attrs
    from rich.console import Console

    from qpass.device import select_device
    from qpass.files import temporary_folder
    from qpass.images import First, open_images
    from qpass.measuring import Bench, measure, prepared
    from qpass.progress import for_terminal
    from qpass.report.data import plain

    catalog = options.catalog(plugins)
    given = options.assigned(overrides, against=against, resize=resize, precision=precision, seed=seed)
    evaluators = prepared(metrics, given, catalog)
    where = select_device(device)
    with for_terminal() as progress:
        opened = open_images(images, progress.say)
        if samples is not None:
            opened = First(opened, samples)
        bench = Bench(folder=work or temporary_folder(), device=where, progress=progress)
        found = {metric.name: metric for metric in measure(opened, evaluators, bench)}
    asked = [found[name] for name in metrics]
    if as_json:
        click.echo(json.dumps({"metrics": [plain(attrs.asdict(metric)) for metric in asked]}, indent=1))
    else:
        Console().print(table(asked))


def table(metrics: Sequence[Metric]) -> Table:
    """A row for each metric, and below what all of them share of their protocols."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    first = metrics[0].protocol
    shared = {
        key: value
        for key, value in first.items()
        if all(key in metric.protocol and metric.protocol[key] == value for metric in metrics)
    }
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", caption_style="")
    sheet.add_column("metric", no_wrap=True)
    sheet.add_column("value", justify="right", style="bold", no_wrap=True)
    sheet.add_column("better", style="dim", no_wrap=True)
    sheet.add_column("measured with", style="dim", overflow="fold")
    for metric in metrics:
        own = ", ".join(f"{key} {value}" for key, value in metric.protocol.items() if key not in shared)
        sheet.add_row(metric.name, f"{metric.value:.6g}", metric.better, Text(own))
    sheet.caption = Text(", ".join(f"{key} {value}" for key, value in shared.items()))
    return sheet
