"""Cells that differ in nothing but the seed, made into one with the means of their figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = Mapping[str, Any]  # as a comparison's document has it
Figure = Mapping[str, Any]


def over_seeds(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for each recipe and model, of its finished ones; as it is where there is only one."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["recipe"], cell["model"]), []).append(cell)
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[Cell]) -> Cell:
    done = [cell for cell in group if cell["status"] == "done"]
    if len(done) < 2:
        return (done or group)[0]
    return {
        **done[0],
        "metrics": _means([cell["metrics"] for cell in done]),
        "timed": _means([cell["timed"] or () for cell in done]),
        "seconds": statistics.fmean(cell["seconds"] for cell in done),
        "peak_memory_mb": max(cell["peak_memory_mb"] for cell in done),
    }


def _means(runs: Iterable[Iterable[Figure]]) -> list[Figure]:
    """Each figure with the mean of its values, and their standard deviation as `spread`; None where one has none."""
    alike: dict[tuple[str, str, str], list[Figure]] = {}
    for run in runs:
        for figure in run:
            alike.setdefault((figure["evaluator"], figure["name"], figure["subject"]), []).append(figure)
    return [_mean(figures) for figures in alike.values()]


def _mean(figures: Sequence[Figure]) -> Figure:
    values = [figure["value"] for figure in figures]
    if None in values:
        return {**figures[0], "value": None}
    # of figures that are all equal the mean is that figure, to the last digit
    mean = values[0] if len(set(values)) == 1 else statistics.fmean(values)
    return {**figures[0], "value": mean, "spread": statistics.stdev(values) if len(values) > 1 else 0.0}
