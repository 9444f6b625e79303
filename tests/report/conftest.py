"""A run as it might have been: 65 layers, 20 timesteps, 32 images, and one evaluator that nobody here wrote."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import pytest

from qpass.evaluator import Metric, Observation, Series
from qpass.manager import Record
from qpass.report import report


def layer_names() -> list[str]:
    names = ["conv_in", "time_embedding.linear_1", "time_embedding.linear_2"]
    for block in range(4):
        for resnet in range(2):
            head = f"down_blocks.{block}.resnets.{resnet}"
            names += [f"{head}.conv1", f"{head}.conv2", f"{head}.time_emb_proj"]
        if block == 1:
            names += [f"down_blocks.1.attentions.0.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")]
    names += [f"mid_block.attentions.0.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")]
    for block, resnet in itertools.product(range(4), range(2)):
        head = f"up_blocks.{block}.resnets.{resnet}"
        names += [f"{head}.conv1", f"{head}.conv2", f"{head}.time_emb_proj", f"{head}.conv_shortcut"]
    return [*names[:64], "conv_out"]


def samples(rng: np.random.Generator, count: int = 32, size: int = 32) -> np.ndarray[Any, Any]:
    """Soft shapes on soft grounds, as a small model might draw them."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    images = np.empty((count, size, size, 3))
    for image in images:
        sky, ground, thing = rng.uniform(40, 240, (3, 3))
        level = rng.uniform(0.45, 0.8) + 0.05 * np.sin(x * rng.uniform(3, 9) + rng.uniform(0, 6))
        land = 1 / (1 + np.exp((level - y) * 40))
        image[:] = sky * (1 - land)[..., None] * (1 - 0.25 * y[..., None]) + ground * land[..., None]
        (cx, cy), (rx, ry) = rng.uniform(0.3, 0.7, 2), rng.uniform(0.12, 0.28, 2)
        body = 1 / (1 + np.exp((((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 - 1) * 6))
        image[:] = image * (1 - body[..., None]) + thing * body[..., None] * (0.7 + 0.5 * (1 - y[..., None]))
    return np.clip(images + rng.normal(0, 3, images.shape), 0, 255).astype(np.uint8)


@attrs.frozen(kw_only=True, eq=False)
class Example:
    """What `render` takes."""

    report: dict[str, Any]
    observations: dict[str, dict[str, Observation]]
    timings: dict[str, Any]


RECIPE = {
    "seed": 0,
    "memory_budget": "4GB",
    "model": {"use": "cifar10-unet"},
    "sampling": {"scheduler": "ddim", "steps": 20, "eta": 0.0},
    "calibration": {"use": "uniform-steps", "samples": 256},
    "passes": [
        {"use": "assign", "weight": "int4 channel", "input": "int8 tensor time:10"},
        {"use": "brecq", "iterations": 20000, "batch": 32},
        {"use": "simulate"},
    ],
    "evaluators": [{"use": "drift"}, {"use": "size"}, {"use": "sharpness"}],
    "presets": {"fast": {"passes": {"brecq": {"iterations": 500}}}},
}


def records(names: list[str]) -> tuple[Record, ...]:
    specs = {
        name: "int8 channel sym" if name.startswith(("conv_", "time")) else "int4 channel sym" for name in names
    }
    left = {
        "time_proj": "no weight, and its input is the timestep itself",
        "conv_norm_out": "group normalisation is left alone by every recipe",
        "down_blocks.1.attentions.0/softmax[0]": "kept whole: no pass asked for the tensors inside",
    }
    return (
        Record(
            index=1,
            name="assign",
            options={"weight": "int4 channel", "input": "int8 tensor time:10", "ends": "int8", "overrides": ()},
            changed=True,
            notes={"bits": {"4/8": 60, "8/8": 5}, "nodes": specs, "left_in_float": left},
        ),
        Record(
            index=2,
            name="brecq",
            options={"iterations": 20000, "batch": 32, "learning_rate": 0.001, "warmup": 0.2},
            changed=True,
            notes={
                "blocks": 27,
                "mean_loss_before": 0.01834,
                "mean_loss_after": 0.002917,
                "hardest": ["up_blocks.3.resnets.1", "conv_out"],
            },
        ),
        Record(
            index=3, name="simulate", options={}, changed=True, notes={"execution": {"simulated": 65, "float": 3}}
        ),
    )


def metrics() -> list[tuple[str, Metric]]:
    protocol = {"images": 32, "steps": 20, "scheduler": "ddim", "seed": 0}
    pair = {"subject": "pair", "protocol": protocol}
    size = {"better": "lower", "protocol": {"counted": "weights, scales and biases as stored"}}
    both: list[tuple[str, Metric]] = []
    for name, original, quantized, unit in (
        ("packed_mb", 143.08, 20.61, "MB"),
        ("bits_per_weight", 32.0, 4.61, "bits"),
        ("macs", 6.061e9, 6.061e9, "MACs"),
        ("bops", 6.2065e12, 2.4188e11, "BOPs"),
    ):
        both += [
            ("size", Metric(name=name, value=original, unit=unit, subject="original", **size)),
            ("size", Metric(name=name, value=quantized, unit=unit, subject="quantized", **size)),
        ]
    return [
        ("drift", Metric(name="sqnr", value=21.847, unit="dB", **pair)),
        ("drift", Metric(name="psnr", value=33.1904, unit="dB", **pair)),
        ("drift", Metric(name="ssim", value=0.96713, **pair)),
        ("drift", Metric(name="lpips", value=0.01894, better="lower", **pair)),
        ("features", Metric(name="sfid", value=12.91, better="lower", subject="original", protocol=protocol)),
        ("features", Metric(name="sfid", value=13.44, better="lower", subject="quantized", protocol=protocol)),
        ("features", Metric(name="kid", value=math.nan, better="lower", subject="quantized", protocol=protocol)),
        *both,
        ("size", Metric(name="packed_ratio", value=6.942, unit="x", subject="pair")),
        ("sharpness", Metric(name="edge_energy", value=0.1841, subject="original")),
        ("sharpness", Metric(name="edge_energy", value=0.1793, subject="quantized")),
    ]


def observed(names: list[str]) -> dict[str, dict[str, Observation]]:
    rng = np.random.default_rng(7)
    original = samples(rng)
    blur = (original + np.roll(original, 1, 1).astype(float) * 0.06) / 1.06 + rng.normal(0, 4, original.shape)
    quantized = np.clip(blur, 0, 255).astype(np.uint8)
    layer = [float(y) for y in rng.normal(29, 4.5, len(names))]
    layer[names.index("down_blocks.1.attentions.0.to_out.0")] = 11.3
    layer[-1] = math.inf
    steps = tuple(float(t) for t in range(19, 999, 50))
    by_step = tuple(27 - 8 * math.exp(-t / 130) + float(rng.normal(0, 0.25)) for t in steps)
    drift = {
        "sqnr_by_layer": Series(
            title="SQNR per layer", x=tuple(names), y=tuple(layer), x_label="layer", y_label="SQNR (dB)"
        ),
        "sqnr_by_step": Series(
            title="SQNR per timestep", x=steps, y=by_step, x_label="timestep", y_label="SQNR (dB)"
        ),
    }

    def sharp(images: np.ndarray[Any, Any], scale: float) -> Observation:
        rows = images.astype(np.int16)
        edges = np.abs(np.diff(rows, axis=1, append=rows[:, -1:])).clip(0, 85).astype(np.uint8) * 3
        curve = tuple(scale * (1 - math.exp(-t / 400)) for t in steps)
        return Observation(
            series={"edges": Series(title="Edge energy", x=steps, y=curve, x_label="timestep", y_label="energy")},
            images={"edges": edges[:8]},
        )

    return {
        "drift": {
            "original": Observation(images={"samples": original}),
            "quantized": Observation(images={"samples": quantized}, series=drift),
        },
        "sharpness": {"original": sharp(original, 0.20), "quantized": sharp(quantized, 0.185)},
    }


def timed() -> dict[str, Any]:
    def metric(name: str, value: float, subject: str, better: str, unit: str) -> Mapping[str, Any]:
        fields = {"name": name, "value": value, "subject": subject, "better": better, "unit": unit}
        return {"evaluator": "speed", "protocol": {"batch": 32, "threads": 2}, **fields}

    return {
        "passes": [
            {"index": 1, "pass": "assign", "seconds": 0.0841},
            {"index": 2, "pass": "brecq", "seconds": 1934.2},
            {"index": 3, "pass": "simulate", "seconds": 4.31},
        ],
        "metrics": [
            metric("ms_per_step", 412.9, "original", "lower", "ms"),
            metric("ms_per_step", 498.2, "quantized", "lower", "ms"),
            metric("peak_memory_mb", 1843.0, "original", "lower", "MB"),
            metric("peak_memory_mb", 1911.0, "quantized", "lower", "MB"),
        ],
        "total_seconds": 2153.7,
    }


@pytest.fixture(scope="session")
def example() -> Example:
    names = layer_names()
    versions = {"qpass": "0.1.0", "torch": "2.15.0", "diffusers": "0.42.0", "python": "3.11.9"}
    return Example(
        report=report(RECIPE, 0, versions, "cpu", records(names), metrics()),
        observations=observed(names),
        timings=timed(),
    )
