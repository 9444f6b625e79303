"""LPIPS of images that two models drew, and of anyone's pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from qpass_evaluators.lpips import LpipsDistance
from torch.fx import GraphModule

from qpass.evaluator import Subject
from qpass.images import First, open_images
from qpass.measuring import Bench
from qpass.protocol import differences
from qpass.sampling import Sampler

Photos = Callable[..., Path]


def test_the_other_side_is_named(photos: Photos, tmp_path: Path) -> None:
    """Figures of the same images against other ones are unlike, if by the pixels alone."""
    images, bench = open_images(str(photos("a", 3, 1, 32))), Bench(folder=tmp_path)
    found = []
    for seed in (2, 2, 3):
        (metric,) = LpipsDistance(against=str(photos("b", 3, seed, 32))).measure(images, bench)
        assert (metric.protocol["reference"], metric.protocol["reference_images"]) == ("b", 3)
        found.append(metric)
    assert found[0] == found[1]
    (apart,) = differences(found[1].protocol, found[2].protocol)
    assert apart.startswith("reference_hash ")
    short = First(images, 2)
    (other,) = LpipsDistance(against=str(photos("b", 2, 2, 32))).measure(short, bench)
    assert any(line.startswith("reference_images 3") for line in differences(found[1].protocol, other.protocol))


def test_in_a_recipe_the_protocol_is_the_drawing(teacher: GraphModule, context: Any, tmp_path: Path) -> None:
    """Both sides come from the same noise of one sampling, which is named; on another machine it is the same."""

    class Larger(type(context(teacher).model)):  # type: ignore[misc]
        def sampler(self) -> Sampler:
            return Sampler(shape=(3, 32, 32), scheduler_config=super().sampler().scheduler_config)

    ctx = context(teacher, scratch=tmp_path, model=Larger())
    quantized = copy.deepcopy(teacher)
    with torch.no_grad():
        quantized.last.weight *= 1.5
    evaluator = LpipsDistance(samples=2)
    original = evaluator.observe(Subject(role="original", graph=teacher), ctx)
    (metric,) = evaluator.score(evaluator.observe(Subject(role="quantized", graph=quantized), ctx), original)
    assert metric.value > 0
    assert (metric.protocol["sampler"], metric.protocol["images"]) == ("ddim", 2)
    assert not any(key.startswith("reference") for key in metric.protocol)
