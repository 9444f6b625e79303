"""`qpass sample`: look at what a model draws."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qpass.cli import options
from qpass.errors import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from qpass.plugins import Catalog

GAP = 2  # white pixels between images


def _out(ctx: click.Context, param: click.Parameter, out: Path) -> Path:
    """Refuse, before anything is drawn, what could not be written after it."""
    if not _folder(out) and out.suffix.lower() not in (".png", ".npz"):
        why = f"{str(out)!r} must end in .png (one grid) or .npz (an array), or in nothing (a folder of PNGs)"
        raise click.BadParameter(why, ctx=ctx, param=param)
    if not _folder(out) and not out.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(out.parent)!r}; create it first", ctx=ctx, param=param)
    if out.exists() and out.is_dir() != _folder(out):
        kind = "a folder" if out.is_dir() else "a file"
        raise click.BadParameter(f"{str(out)!r} is {kind} already; choose another name", ctx=ctx, param=param)
    return out


def _folder(out: Path) -> bool:
    """Whether a folder is meant: what follows the last dot is no file's ending, but part of a name, as in guided-1.5.

    >>> _folder(Path("images")), _folder(Path("w4a4-cifar10-dit-1.5-seed0")), _folder(Path("grid.jpg"))
    (True, True, False)
    """
    return not out.suffix[1:].isalpha()


@click.command("sample", short_help="Draw images from a quantized or original model.", epilog=options.EXIT_CODES)
@click.argument("source", metavar="RUN|ARTIFACT|MODEL")
@click.option(
    "--count", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="How many images."
)
@click.option(
    "--out",
    required=True,
    metavar="FILE.png|FILE.npz|DIR",
    callback=_out,
    type=click.Path(path_type=Path),
    help="Where to write: a grid, an array, or one PNG per image in a folder.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Where the noise comes from: image i depends on the seed and i alone.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Denoising steps per image.  [default: as in the recipe]",
)
@options.settings
@options.device
@options.plugin
@options.debug
def command(
    source: str,
    count: int,
    out: Path,
    seed: int,
    steps: int | None,
    overrides: tuple[str, ...],
    device: str,
    plugins: tuple[Path, ...],
) -> None:
    """Draw images from the quantized model in a run's folder or an artifact's, or from an original model by name.

    With the same seed, two models draw from the same noise, so their images can be compared one by one. A grid
    stands in rows, image 0 at the top left, as nearly square as the number allows. FILE.npz holds one array,
    `arr_0`, uint8 N x H x W x 3. A folder gets 000000.png and so on, and sampling.json, which says how they were
    drawn; interrupted, the same command goes on where it stopped.

    \b
    Examples:
      qpass sample runs/w4a4-cifar10-unet --out grid.png
      qpass sample runs/mine/artifact --count 16 --seed 7 --out seven.png
      qpass sample cifar10-unet --set sampling.scheduler=ddpm --steps 1000 --out original.png
      qpass sample diffusers --set model.path=my-pipeline/ --count 5000 --device cuda --out images/

    A file appears when it is complete and replaces the one that is there; the folder it lies in must exist. A
    folder of images is created, with those above it.
    """
    import numpy as np

    from qpass.files import write_file
    from qpass.progress import for_terminal
    from qpass.run import draw

    catalog = options.catalog(plugins)
    changes = (*overrides, *([f"sampling.steps={steps}"] if steps else []))
    with for_terminal() as progress:
        if Path(source).is_dir() and (draw.is_artifact(Path(source)) or source not in catalog.classes["models"]):
            found = draw.artifact(Path(source), catalog=catalog, device=device, overrides=changes)
        else:
            _known(source, catalog)
            found = draw.original(source, catalog=catalog, device=device, overrides=changes)
        if _folder(out):
            draw.into_folder(found, out, seed=seed, count=count, progress=progress)
        else:
            images = np.concatenate(list(found.batches(seed=seed, count=count, progress=progress)))
            write_file(out, draw.png(grid(images)) if out.suffix.lower() == ".png" else _npz(images))
    click.echo(str(out))


def _known(source: str, catalog: Catalog) -> None:
    """Refuse what is neither a folder nor a model's name."""
    names = tuple(catalog.classes["models"])
    if source not in names:
        raise click.UsageError(f"no folder {source!r}, and no model of that name: {did_you_mean(source, names)}")


def _npz(images: np.ndarray[Any, Any]) -> bytes:
    """The array as ADM's evaluator takes it."""
    import numpy as np

    file = io.BytesIO()
    np.savez(file, arr_0=images)
    return file.getvalue()


def grid(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """N x H x W x 3 images in one, row by row, on white; as many columns as rows, or a few more.

    >>> import numpy as np
    >>> grid(np.zeros((6, 8, 8, 3), np.uint8)).shape  # two rows of three
    (18, 28, 3)
    """
    import numpy as np

    count, height, width, channels = images.shape
    columns = math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet
