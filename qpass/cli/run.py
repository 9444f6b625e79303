"""`qpass run`: carry out a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from qpass.cli import options, recipes


@click.command("run", short_help="Carry out a recipe: quantize, measure, report.", epilog=options.EXIT_CODES)
@click.argument("recipe", shell_complete=recipes.complete)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run's folder: a new one, or one to go on in.  [default: runs/<recipe>-<model>]",
)
@click.option("--preset", metavar="NAME", help="Apply the recipe's [presets.NAME], for example `fast`.")
@options.settings
@options.device
@options.plugin
@options.debug
def command(
    recipe: str,
    out: Path | None,
    preset: str | None,
    overrides: tuple[str, ...],
    device: str,
    plugins: tuple[Path, ...],
) -> None:
    """Carry out RECIPE, a name that ships (`qpass list recipes`) or the path of a TOML file.

    A method's recipe ships for some bits and can be had at any from 2 to 8: `brecq-w3a6` is `brecq-w4a8` with
    weights of 3 and inputs of 6 bits.

    The whole recipe is checked before any weight is read, and every mistake in it is reported at once. Then its
    passes quantize the model, its evaluators compare the result with the original, and a table of the outcome is
    printed.

    The same command again goes on where an interrupted run stopped. If something that matters has changed, the
    run says what, and redoes the work from there.

    \b
    Examples:
      qpass run w4a4
      qpass run w4a4 --preset fast --out runs/try
      qpass run mine.toml --set passes.brecq.iterations=200 --set seed=1
      qpass run mine.toml --plugin my_pass.py --device cuda

    KEY is the path of an option in the recipe. A pass is addressed by its name, the second of that name as
    `brecq#2`. VALUE is written as in TOML; quotes around text may be left out.

    \b
    It writes into the run's folder
      recipe.toml       the recipe as carried out, with preset and changes applied
      stages/           each pass's result, from which an interrupted run resumes
      artifact/         the quantized model; `qpass.load` opens it
      report.html       the report for people, and report.json for programs
      calibration.json  what it was calibrated on: name, options, timesteps, a hash of the rows
      timings.json      seconds and memory, which vary between equal runs
    """
    from rich.console import Console

    from qpass.progress import for_terminal
    from qpass.recipe import read
    from qpass.report.terminal import table
    from qpass.run import run

    catalog = options.catalog(plugins)
    plan = read(recipe, catalog=catalog, preset=preset, overrides=overrides)
    with for_terminal() as progress:
        result = run(plan, catalog=catalog, out=out, device=device, progress=progress)
    Console().print(table(result.report, result.timings))
    click.echo(f"report: {result.folder / 'report.html'}")
