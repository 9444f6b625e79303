"""The passes, quantizers and calibration sets that come with qpass, registered like anyone else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qpass.analysis import Analysis
from qpass.hookspecs import hookimpl
from qpass.manager import Pass
from qpass.quantizer import Quantizer
from qpass_passes.adaround import AdaRound
from qpass_passes.allocate import Allocate
from qpass_passes.assign import Assign
from qpass_passes.bias_correction import BiasCorrection
from qpass_passes.brecq import Brecq
from qpass_passes.calibration.density_diversity import DensityDiversity
from qpass_passes.calibration.every_step import EveryStep
from qpass_passes.calibration.normal_steps import NormalSteps
from qpass_passes.calibration.uniform_steps import UniformSteps
from qpass_passes.daq import Daq
from qpass_passes.gptq import Gptq
from qpass_passes.learn_steps import LearnSteps
from qpass_passes.output_correction import OutputCorrection
from qpass_passes.par import Par
from qpass_passes.qdrop import QDrop
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.quantizers.adaptive_log import AdaptiveLog
from qpass_passes.quantizers.learned_step import LearnedStep
from qpass_passes.quantizers.log2 import Log2
from qpass_passes.quantizers.log_sqrt2 import LogSqrt2
from qpass_passes.quantizers.mse import Mse
from qpass_passes.quantizers.percentile import Percentile
from qpass_passes.repq import RepQ
from qpass_passes.simulate import Simulate
from qpass_passes.smooth import Smooth
from qpass_passes.split_shortcut import SplitShortcut
from qpass_passes.tcr import Tcr
from qpass_passes.tfmq import Tfmq


@hookimpl
def register_passes() -> Sequence[type[Pass]]:
    return (
        AdaRound, Allocate, Assign, BiasCorrection, Brecq, Daq, Gptq, LearnSteps, OutputCorrection, Par, QDrop, RepQ,
        Simulate, Smooth, SplitShortcut, Tcr, Tfmq,
    )  # fmt: skip


@hookimpl
def register_quantizers() -> Sequence[type[Quantizer]]:
    return (AbsMax, AdaptiveLog, LearnedStep, Log2, LogSqrt2, Mse, Percentile)


@hookimpl
def register_analyses() -> Sequence[type[Analysis[Any]]]:
    return (DensityDiversity, EveryStep, NormalSteps, UniformSteps)
