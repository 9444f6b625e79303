"""Carries out TCAQ-DM's recipe piece by piece, and with each setting that the paper leaves open at another value.

`python tests/benchmarks/tcaq_ablation.py --bits w4a4 --out runs/ablation`: writes a recipe for each row under OUT and
hands them to `qpass compare`, so an interrupted ablation goes on where it stopped. `--rows pieces` is its first part,
`settings` the second, and `spent`, with `allocate` in it, the third; names of single rows do as well.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

Recipe = dict[str, Any]
Change = Callable[[Recipe], None]


def without(*names: str) -> Change:
    """Leave these passes out, and their lines of presets."""

    def change(recipe: Recipe) -> None:
        recipe["passes"] = [one for one in recipe["passes"] if one["use"] not in names]
        for preset in recipe.get("presets", {}).values():
            for name in names:
                preset.get("passes", {}).pop(name, None)

    return change


def with_(name: str, **options: object) -> Change:
    """Give a pass other options, in the preset too."""

    def change(recipe: Recipe) -> None:
        next(one for one in recipe["passes"] if one["use"] == name).update(options)
        for preset in recipe.get("presets", {}).values():
            for option in set(options) & set(preset.get("passes", {}).get(name, {})):
                preset["passes"][name][option] = options[option]

    return change


def corrected(recipe: Recipe) -> None:
    """Biases moved by the mean error, last of all."""
    recipe["passes"].insert(-1, {"use": "bias-correction"})


def output_corrected(way: str) -> Change:
    """The output's shrinking and shift undone, after everything else, on full precision's way or the model's own."""

    def change(recipe: Recipe) -> None:
        recipe["passes"].append({"use": "output-correction", "way": way})

    return change


def one_group(recipe: Recipe) -> None:
    """One scale for all timesteps."""
    assign = recipe["passes"][0]
    assign["input"] = assign["input"].split(" time:")[0]


def dynamic(recipe: Recipe) -> None:
    """A scale for each sample as it comes, as in Q-DiT, in place of one for each step."""
    one_group(recipe)
    recipe["passes"][0]["input"] += " dynamic"


def split(recipe: Recipe) -> None:
    """Two quantizers for each concatenated input, as in Q-Diffusion and what was built on its code."""
    recipe["passes"].insert(1, {"use": "split-shortcut"})


def groups(count: int, split: str = "") -> Change:
    def change(recipe: Recipe) -> None:
        one_group(recipe)
        recipe["passes"][0]["input"] += f" time:{count}{split}"

    return change


def raised(budget: float) -> Change:
    """More bits where they count, before anything else."""

    def change(recipe: Recipe) -> None:
        recipe["passes"].insert(1, {"use": "allocate", "budget": budget, "rows": 32, "fit_rows": 64})

    return change


PIECES: dict[str, tuple[Change, ...]] = {
    "together": (without("tcr", "daq", "par"), one_group),
    "together-twice": (without("tcr", "daq", "par"), one_group, with_("qdrop", iterations=600)),
    "together-bias": (without("tcr", "daq", "par"), one_group, corrected),
    "time": (without("tcr", "daq", "par"),),
    "tcr": (without("daq", "par"), one_group),
    "time-tcr": (without("daq", "par"),),
    "time-daq": (without("tcr", "par"),),
    "time-tcr-daq": (without("par"),),
    "par": (without("tcr", "daq"), one_group),
    "time-par": (without("tcr", "daq"),),
    "time-tcr-par": (without("daq"),),
    "all": (),
    "all-output": (output_corrected("full"),),
    "all-output-own": (output_corrected("own"),),
}
SETTINGS: dict[str, tuple[Change, ...]] = {
    "groups-5": (groups(5),),
    "groups-10": (groups(10),),
    "groups-5-range": (groups(5, ":range"),),
    "groups-10-range": (groups(10, ":range"),),
    "target-min": (with_("tcr", target="min"),),
    "target-mean": (with_("tcr", target="mean"),),
    "limit-none": (with_("tcr", limit=0.0),),
    "limit-32": (with_("tcr", limit=32.0),),
    "strength-1": (with_("tcr", search=False),),
    "strength-half": (with_("tcr", search=False, strength=0.5),),
    "split": (split,),
    "dynamic-together": (without("tcr", "daq", "par"), dynamic),
    "dynamic": (dynamic,),
    "drop-half": (with_("qdrop", drop=0.5), with_("par", drop=0.5)),
    "balance-0": (with_("qdrop", balance=0.0), with_("par", balance=0.0)),
    "balance-half": (with_("qdrop", balance=0.5), with_("par", balance=0.5)),
    "rounds-2": (with_("par", rounds=2),),
    "mix-0": (with_("par", mix=0.0),),
    "target-trajectory": (with_("par", target="trajectory"),),
    "likelihood-exponential": (with_("daq", criterion="likelihood"),),
    "likelihood-log-normal": (with_("daq", criterion="likelihood", alternative="log-normal"),),
    "likelihood-half-normal": (with_("daq", criterion="likelihood", alternative="half-normal"),),
}
SPENT: dict[str, tuple[Change, ...]] = {
    "allocate-nearest": (without("tcr", "daq", "qdrop", "par"), raised(0.05)),
    "allocate-time": (without("tcr", "daq", "par"), raised(0.05)),
    "allocate-time-tcr": (without("daq", "par"), raised(0.05)),
    "allocate-all": (raised(0.05),),
    "allocate-all-output": (raised(0.05), output_corrected("full")),
    "budget-2": (without("par"), raised(0.02)),
    "budget-5": (without("par"), raised(0.05)),
    "budget-10": (without("par"), raised(0.1)),
    "budget-20": (without("par"), raised(0.2)),
}


def written(folder: Path, bits: str, rows: dict[str, tuple[Change, ...]]) -> list[str]:
    """A recipe file for each row."""
    base = tomllib.loads(files("qpass.recipes").joinpath(f"tcaq-{bits}.toml").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, changes in rows.items():
        recipe = copy.deepcopy(base)
        for change in changes:
            change(recipe)
        file = folder / f"{name}.toml"
        file.write_text(tomli_w.dumps(recipe), encoding="utf-8")
        made.append(str(file))
    return made


def main() -> None:
    every = PIECES | SETTINGS | SPENT
    parts = {"pieces": list(PIECES), "settings": list(SETTINGS), "spent": list(SPENT)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="w4a4", choices=["w4a4", "w4a8", "w6a6", "w8a8"])
    parser.add_argument("--rows", nargs="*", default=["pieces", "settings"], choices=[*parts, *every])
    parser.add_argument("--model", default="cifar10-unet")
    parser.add_argument("--images", type=int, default=256, help="of PSNR and LPIPS")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `qpass compare`")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    names = [name for row in options.rows for name in parts.get(row, [row])]
    recipes = written(options.out / "recipes", options.bits, {name: every[name] for name in names})
    command = [
        sys.executable, "-m", "qpass", "compare", *recipes, "--model", options.model, "--preset", options.preset,
        "--set", f"evaluators.drift.samples={options.images}", "--set", f"evaluators.lpips.samples={options.images}",
        "--set", "sampling.compiled=true", *(f"--set={change}" for change in options.set), "--out", str(options.out),
    ]  # fmt: skip
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
