"""Prints what sets of images look like in numbers, as markdown: what FID punishes, and PSNR does not tell apart.

`python tests/benchmarks/looks.py IMAGES ...`: folders that `qpass sample` drew, or whatever else `qpass measure` reads.
All in units of 1/255: `light` is the mean of each colour; `colours` how far the mean colours of images lie apart, and
`contrast` the values within an image, as standard deviations; `edges` how far a value is from the mean of its four
neighbours, root mean square.
"""

from __future__ import annotations

import argparse

import numpy as np

from qpass.images import First, open_images


def edges(x: np.ndarray) -> float:
    """How far values are from the mean of their four neighbours, root mean square; images are N x H x W x C."""
    across, down = (x[:, 1:-1, :-2] + x[:, 1:-1, 2:]), (x[:, :-2, 1:-1] + x[:, 2:, 1:-1])
    return float(np.sqrt(((x[:, 1:-1, 1:-1] - (across + down) / 4) ** 2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--samples", type=int, default=1000, help="of each, from the first on")
    options = parser.parse_args()
    print("| images | count | light, R G B | colours | contrast | edges |")
    print("|---|---|---|---|---|---|")
    for name in options.images:
        opened = open_images(name, print)
        first = First(opened, min(options.samples, len(opened)))
        x = np.concatenate(list(first.batches(250))).astype(float)
        means = x.mean((1, 2))
        light = " ".join(f"{value:.0f}" for value in means.mean(0))
        spread = np.sqrt(means.var(0).mean())
        print(
            f"| {opened.name} | {len(x)} | {light} | {spread:.0f} | {x.std((1, 2)).mean():.0f} | {edges(x):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
