"""What happens at each sampling step, as one frozen value that passes return and samplers carry out."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Step:
    """One denoising step, from timestep `t` to `t_prev` (-1 is the clean image).

    `program` names the graph program to run; `correction` names a table in the artifact, if any.
    """

    t: float
    t_prev: float
    program: str = "full"
    correction: str | None = None


@attrs.frozen(kw_only=True)
class StepPlan:
    """The steps of one sampling, first to last."""

    steps: tuple[Step, ...]

    @property
    def plain(self) -> bool:
        """Whether any sampler can carry this out: one program and no corrections."""
        return all(s.program == "full" and s.correction is None for s in self.steps)
