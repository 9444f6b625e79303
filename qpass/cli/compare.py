"""`qpass compare`: recipes side by side, on one model or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qpass.cli import options, recipes


@click.command(
    "compare", short_help="Carry out several recipes and put them side by side.", epilog=options.EXIT_CODES
)
@click.argument("recipe", nargs=-1, required=True, metavar="RECIPE...", shell_complete=recipes.complete)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="Carry out every recipe on this model, whichever is its own. May be given several times.",
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=int,
    metavar="N",
    help="Carry out every recipe with this seed. May be given several times: the table then has means.",
)
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The comparison's folder, with a run's folder for each cell.",
)
@click.option("--preset", metavar="NAME", help="Apply each recipe's [presets.NAME], for example `fast`.")
@options.settings
@options.device
@options.plugin
@options.debug
def command(
    recipe: tuple[str, ...],
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    out: Path,
    preset: str | None,
    overrides: tuple[str, ...],
    device: str,
    plugins: tuple[Path, ...],
) -> None:
    """Carry out every RECIPE on every model, one after another, and print a table of what came out.

    Each pair is a run like any other, in the folder DIR/<recipe>-<model>, in a process of its own. Runs on one model
    share its trace, its calibration set, its images and what was measured on them; those that begin with the same
    passes share their results too. All recipes are checked before anything is loaded. A run that fails stops no
    other: the table has its error, and the exit code is 2.

    With --seed each pair has a run for each seed, in DIR/<recipe>-<model>-seed<N>, all pairs with the first seed
    first; the table then has the mean and the standard deviation of each figure.

    The same command again keeps what is finished, goes on where a run was interrupted, and tries again what failed.

    \b
    Examples:
      qpass compare w8a8 w6a6 w4a8 w4a4 --out runs/bits
      qpass compare w8a8 mine.toml --model cifar10-unet --model cifar10-dit --out runs/mine --preset fast
      qpass compare brecq-w4a4 qdrop-w4a4 --seed 0 --seed 1 --seed 2 --out runs/seeds --preset fast
      qpass compare w4a4 w4a8 --model diffusers:path=models/mine --out runs/bits --set sampling.steps=50

    KEY and VALUE of --set are as in `qpass run`, and apply to every recipe; those of --model are options of the model,
    and of sampling where they are for one model alone, as in cifar10-dit:sampling.guidance=1.5.

    \b
    It writes into DIR
      compare.md          the table, as markdown
      compare.json        schema, and cells: recipe, model, seed, folder, status (done, failed or waiting), error,
                          metrics as in report.json, and what varies between equal runs: seconds of the passes,
                          total_seconds, peak_memory_mb, resumed, resumed_passes (begun before, so that their
                          seconds are not the whole), and timed, the metrics of timings.json
      <recipe>-<model>/   the folder of each run, as `qpass run` makes it; with -seed<N> where seeds were given
      shared/             what runs on one model share; it can be removed
    """
    from rich.console import Console

    from qpass.compare.matrix import Settings, compare
    from qpass.compare.plan import plan
    from qpass.compare.sheet import sheet
    from qpass.compare.show import markdown, terminal
    from qpass.device import select_device
    from qpass.errors import QpassError
    from qpass.files import write_file
    from qpass.progress import LineProgress
    from qpass.report.data import to_json

    cells = plan(
        recipe, models, catalog=options.catalog(plugins), out=out, preset=preset, overrides=overrides, seeds=seeds
    )
    select_device(device)

    def keep(document: Mapping[str, Any]) -> None:
        write_file(out / "compare.json", to_json(document))
        write_file(out / "compare.md", markdown(sheet(document["cells"])))

    settings = Settings(out=out, device=device, plugins=plugins)
    done = compare(cells, settings, LineProgress(), keep)  # the bars are those of the cells
    console = Console()
    console.print(terminal(sheet(done["cells"]), console.width))
    click.echo(f"table: {out / 'compare.md'}")
    if failed := sum(cell["status"] == "failed" for cell in done["cells"]):
        raise QpassError(f"{failed} of {len(cells)} runs failed; the same command tries them again")
