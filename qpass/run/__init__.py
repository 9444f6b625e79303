"""Carry out a recipe: check it, run its passes, keep every stage, measure, report."""

from qpass.device import select_device
from qpass.run.draw import sample
from qpass.run.execute import RunResult, run

__all__ = ["RunResult", "run", "sample", "select_device"]
