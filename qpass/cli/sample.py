"""`qpass sample`: look at what a quantized model draws."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qpass.cli import options

if TYPE_CHECKING:
    import numpy as np

GAP = 2  # white pixels between images


def _png(ctx: click.Context, param: click.Parameter, out: Path) -> Path:
    """Refuse, before anything is drawn, a file that could not be written after it."""
    if out.suffix.lower() != ".png":
        raise click.BadParameter(f"{str(out)!r} must end in .png", ctx=ctx, param=param)
    if not out.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(out.parent)!r}; create it first", ctx=ctx, param=param)
    return out


@click.command("sample", short_help="Draw images from a quantized model.", epilog=options.EXIT_CODES)
@click.argument("folder", metavar="RUN|ARTIFACT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--count", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="How many images."
)
@click.option(
    "--out",
    required=True,
    metavar="FILE.png",
    callback=_png,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The image grid to write; a file that is there is replaced.",
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
@options.device
@options.plugin
@options.debug
def command(
    folder: Path, count: int, out: Path, seed: int, steps: int | None, device: str, plugins: tuple[Path, ...]
) -> None:
    """Draw images from the quantized model in a run's folder, or in an artifact's, into one PNG file.

    The images stand in rows, image 0 at the top left, in a grid as nearly square as their number allows. With the
    same seed, two models draw from the same noise, so their grids can be compared image by image.

    \b
    Examples:
      qpass sample runs/w4a4-cifar10-unet --out grid.png
      qpass sample runs/mine/artifact --count 16 --seed 7 --out seven.png
      qpass sample runs/mine --steps 20 --device cuda --out quick.png

    It writes FILE.png and nothing else. The file appears when it is complete; its folder must exist.
    """
    from qpass.files import write_file
    from qpass.progress import for_terminal
    from qpass.run import sample

    catalog = options.catalog(plugins)
    with for_terminal() as progress:
        images = sample(
            folder, count=count, seed=seed, steps=steps, device=device, progress=progress, catalog=catalog
        )
    write_file(out, png(grid(images)))
    click.echo(str(out))


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


def png(image: np.ndarray[Any, Any]) -> bytes:
    """The image as the bytes of a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()
