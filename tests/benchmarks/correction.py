"""Prints what `output-correction` brings to finished runs, as markdown.

`python tests/benchmarks/correction.py runs/NAME ...`: folders of runs. The pass is applied to each run's model, with
the run's own calibration; images are drawn from noise that no pass has seen, before and after. `1 + k` is what rounding
has left of the signal, at the middle one of the timesteps, on full precision's way or, with `--way own`, the model's
own; `edges` is how far a value is from the mean of its four neighbours, in units of 1/255.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from finished import asked, grain, opened, psnr
from qpass_passes.output_correction import OutputCorrection

from qpass.files import temporary_folder
from qpass.manager import PassContext
from qpass.plugins import catalog


@torch.inference_mode()
def main() -> None:
    options = asked(__doc__, way={"choices": ["full", "own"], "default": "full"})
    known = catalog()
    print("| run | PSNR (dB) | corrected | edges | corrected | in full precision | 1 + k |")
    print("|---|---|---|---|---|---|---|")
    for folder in options.runs:
        run = opened(folder)
        recipe = run.recipe
        draw = partial(run.drawn, sampling=recipe.sampling, stream="correction", images=options.images)
        exact, before = draw(run.teacher), draw(run.student)
        ctx = PassContext(
            model=recipe.model, reference=run.teacher, sampling=recipe.sampling, calibration=recipe.calibration,
            catalog=known, scratch=Path(temporary_folder()),
        )  # fmt: skip
        result = OutputCorrection(way=options.way).run(run.student, ctx)
        after = draw(result.graph)
        ((_, kept),) = result.notes["1 + k by timestep"]["of"]
        middle = kept[len(kept) // 2][1]
        print(
            f"| {run.name} | {psnr(before, exact):.1f} | {psnr(after, exact):.1f} | {grain(before):.1f} "
            f"| {grain(after):.1f} | {grain(exact):.1f} | {middle:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
