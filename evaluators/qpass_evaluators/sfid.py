"""Fréchet distance that sees where things are: sFID."""

from __future__ import annotations

from typing import ClassVar

import attrs

from qpass_evaluators.gaussian import GaussianEvaluator
from qpass_evaluators.through_inception import InceptionEvaluator


@attrs.frozen(kw_only=True)
class Sfid(GaussianEvaluator, InceptionEvaluator):
    """Fréchet distance of spatial Inception features (2,023), Nash et al. (2021), as ADM's evaluator defines it.

    sfid: the formula of `fid` on the first 7 channels of the 17 x 17 map at `mixed_6/conv`, flattened.
    """

    name: ClassVar[str] = "sfid"
    metrics: ClassVar[tuple[str, ...]] = ("sfid",)
    output: ClassVar[str] = "spatial"
