"""Runs every shipped recipe on both zoo models and prints what was kept, as markdown.

`python tests/benchmarks/recipe_table.py [FOLDER]` resumes in FOLDER (default runs/table). The last column loads each
artifact in a fresh process and compares its images, byte by byte, with those the run itself observed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

RECIPES = ("w8a8", "w6a6", "w4a8", "w4a4")
COLUMNS = (
    "model", "recipe", "output SQNR (dB)", "PSNR (dB)", "SSIM", "packed ratio", "GBOPs", "fresh process bit-equal",
)  # fmt: skip
MODELS = ("cifar10-unet", "cifar10-dit")
FRESH = """
import hashlib, sys
from pathlib import Path
from qpass.plugins import catalog
from qpass.run import sample
images = sample(Path(sys.argv[1]), count=64, catalog=catalog())
print(hashlib.sha256(images.tobytes()).hexdigest())
"""


def row(recipe: str, model: str, root: Path) -> str:
    folder = root / f"{recipe}-{model}"
    command = ["qpass", "run", recipe, "--out", str(folder), "--set", f"model.use={model}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((folder / "report.json").read_text())["metrics"]
    value = {m["name"]: m["value"] for m in metrics if m["subject"] != "original"}
    seen = load_file(folder / "stages" / "observations" / "drift-quantized" / "images.safetensors")["samples"]
    here = hashlib.sha256(seen.numpy().tobytes()).hexdigest()
    fresh = subprocess.run([sys.executable, "-c", FRESH, str(folder)], check=True, capture_output=True, text=True)
    equal = "yes" if fresh.stdout.strip() == here else "NO"
    figures = f"{value['sqnr']:.1f} | {value['psnr']:.1f} | {value['ssim']:.3f} | {value['packed_ratio']:.4f}"
    return f"| {model} | {recipe} | {figures} | {value['bops'] / 1e9:.1f} | {equal} |"


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/table")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for model in MODELS:
        for recipe in RECIPES:
            print(row(recipe, model, root), flush=True)


if __name__ == "__main__":
    main()
