"""The evaluators that ship with qpass."""

from __future__ import annotations

from collections.abc import Sequence

from qpass.evaluator import Evaluator
from qpass.hookspecs import hookimpl
from qpass_evaluators.classifier import ClassAccuracy
from qpass_evaluators.classifier_score import ClassifierScore
from qpass_evaluators.cost import Cost
from qpass_evaluators.drift import Drift
from qpass_evaluators.fd import Fd
from qpass_evaluators.fid import Fid
from qpass_evaluators.inception_score import InceptionScore
from qpass_evaluators.kid import Kid
from qpass_evaluators.latency import Latency
from qpass_evaluators.lpips import LpipsDistance
from qpass_evaluators.precision_recall import PrecisionRecall
from qpass_evaluators.sfid import Sfid
from qpass_evaluators.size import Size


@hookimpl
def register_evaluators() -> Sequence[type[Evaluator]]:
    return (
        ClassAccuracy, ClassifierScore, Cost, Drift, Fd, Fid, InceptionScore, Kid, Latency, LpipsDistance,
        PrecisionRecall, Sfid, Size,
    )  # fmt: skip
