"""The evaluators that ship with qpass."""

from __future__ import annotations

from collections.abc import Sequence

from qpass.evaluator import Evaluator
from qpass.hookspecs import hookimpl
from qpass_evaluators.cost import Cost
from qpass_evaluators.drift import Drift
from qpass_evaluators.latency import Latency
from qpass_evaluators.size import Size


@hookimpl
def register_evaluators() -> Sequence[type[Evaluator]]:
    return (Cost, Drift, Latency, Size)
