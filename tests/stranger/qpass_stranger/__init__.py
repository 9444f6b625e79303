"""A pass, a model, an evaluator and a quantizer for qpass, from somebody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qpass import Evaluator, ModelAdapter, Pass, Quantizer, hookimpl
from qpass_stranger.clip_outliers import ClipOutliers, clip_to_sigmas
from qpass_stranger.colour_balance import ColourBalance
from qpass_stranger.net import StrangerNet
from qpass_stranger.sigma import Sigma


@hookimpl
def register_passes() -> Sequence[type[Pass]]:
    return (ClipOutliers,)


@hookimpl
def register_models() -> Sequence[type[ModelAdapter]]:
    return (StrangerNet,)


@hookimpl
def register_evaluators() -> Sequence[type[Evaluator]]:
    return (ColourBalance,)


@hookimpl
def register_quantizers() -> Sequence[type[Quantizer]]:
    return (Sigma,)


@hookimpl
def register_ops() -> Sequence[Callable[..., Any]]:
    return (clip_to_sigmas,)
