"""Fréchet Inception Distance."""

from __future__ import annotations

from typing import ClassVar

import attrs

from qpass_evaluators.gaussian import GaussianEvaluator
from qpass_evaluators.through_inception import InceptionEvaluator


@attrs.frozen(kw_only=True)
class Fid(GaussianEvaluator, InceptionEvaluator):
    """Fréchet distance of pooled Inception features (2,048), Heusel et al. (2017).

    fid: |μ₁ - μ₂|² + tr(S₁ + S₂ - 2 (S₁S₂)^½) of N x 2048 features, N images a side, uint8, N x H x W x 3. It falls as
    N grows: figures compare only at equal N, resize and reference.
    """

    name: ClassVar[str] = "fid"
    metrics: ClassVar[tuple[str, ...]] = ("fid",)
