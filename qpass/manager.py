"""The contract of a pass, and the manager that runs passes in order and records what each did."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import attrs
import torch
from torch.fx import GraphModule

from qpass.analysis import Analyses, Analysis
from qpass.errors import PreconditionError, QpassError
from qpass.files import temporary_folder
from qpass.model import ModelAdapter
from qpass.plugins import Catalog
from qpass.progress import Progress
from qpass.sampling import Sampling
from qpass.schedule import StepPlan

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class PassContext:
    """Everything around the graph. `reference` is the full-precision teacher, never rewritten.

    `scratch` is a folder for what took long and can be made again; in a run it outlives the process. `shared` is
    one that runs of other recipes may use too, so that what lies in it lies under a fingerprint of all that
    determines it.
    """

    model: ModelAdapter
    reference: GraphModule
    sampling: Sampling
    calibration: Analysis[Any]
    catalog: Catalog
    seed: int = 0
    device: torch.device = attrs.field(factory=lambda: torch.device("cpu"))
    analyses: Analyses = attrs.field(factory=Analyses)
    progress: Progress = attrs.field(factory=Progress)
    scratch: Path = attrs.field(factory=temporary_folder)
    memory_budget: int = 4 << 30
    shared_scratch: Path | None = None

    @property
    def shared(self) -> Path:
        """The folder shared with others, or the run's own."""
        return self.shared_scratch or self.scratch

    def get(self, analysis: Analysis[T], graph: GraphModule) -> T:
        """The analysis of the graph, or of the teacher where it asks for that; computed once."""
        return self.analyses.get(analysis, graph, self)


@attrs.frozen(kw_only=True, eq=False)
class PassResult:
    """A pass's outcome: the graph, whether it changed, a new step plan if any, and notes for the report."""

    graph: GraphModule
    changed: bool
    plan: StepPlan | None = None
    notes: Mapping[str, Any] = attrs.field(factory=dict)


class Pass(ABC):
    """One rewrite of the graph. A pass is its configuration: its attrs fields are the recipe's options.

    `needs` and `provides` are facts by name, checked for order before anything is loaded: "specs" (nodes
    know how they are to be quantized), "realised" (quantization is carried out in the graph).
    `conflicts` are facts that must not hold yet.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()
    conflicts: ClassVar[frozenset[str]] = frozenset({"realised"})
    preserves: ClassVar[frozenset[type[Analysis[Any]]]] = frozenset()

    def requires(self, graph: GraphModule, ctx: PassContext) -> None:
        """Facts this pass needs of the graph; raise `PreconditionError` naming what is missing.

        Called on a graph without weights before the run, and again before the pass runs.
        """
        return

    @abstractmethod
    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite the graph, in place or into a new one."""


@attrs.frozen(kw_only=True)
class Record:
    """What one pass did, for the report."""

    index: int
    name: str
    options: Mapping[str, Any]
    changed: bool
    notes: Mapping[str, Any]


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """The graph after every pass, the plan for sampling it, and the records.

    Of each pass, how long it took, and whether it had been begun before: then its time is not the whole. Of all that
    was kept, the largest peak of the processes that made it, and who did.
    """

    graph: GraphModule
    plan: StepPlan | None
    records: tuple[Record, ...]
    seconds: tuple[float, ...] = ()
    resumed: tuple[bool, ...] = ()
    peak_memory_mb: float = 0.0
    kept_from: str = "an earlier run"


class Stages:
    """Where results of passes are kept between runs. This one keeps nothing."""

    def load(self, index: int) -> Run | None:
        """The run up to and including pass `index`, if it was saved under the same conditions."""
        return None

    def begin(self, index: int) -> bool:
        """Remember that pass `index` is begun; whether it was before, so that some of its work may be done."""
        return False

    def save(self, index: int, run: Run) -> None:
        """Keep the run up to and including pass `index`."""


def _fields(step: Pass) -> Mapping[str, Any]:
    return attrs.asdict(step, recurse=False)  # type: ignore[arg-type]


class PassManager:
    """Runs passes in the order given. It never reorders, skips or adds any."""

    def __init__(
        self,
        passes: Sequence[Pass],
        hook: Any = None,
        options: Callable[[Pass], Mapping[str, Any]] | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.passes, self.hook = tuple(passes), hook
        self.options = options or _fields
        self.stages = stages or Stages()

    def run(self, graph: GraphModule, ctx: PassContext) -> Run:
        """Carry out every pass that is not already kept in `stages`."""
        run = Run(graph=graph, plan=None, records=())
        first = 0
        for index in reversed(range(len(self.passes))):
            if (kept := self.stages.load(index)) is not None:
                kept.graph.to(ctx.device)  # it was read onto the CPU
                run, first = kept, index + 1
                for record in run.records:
                    ctx.progress.say(f"{record.index}. {record.name}: kept from {run.kept_from}")
                break
        for index in range(first, len(self.passes)):
            resumed = self.stages.begin(index)
            run = attrs.evolve(self._step(index, run, ctx), resumed=(*run.resumed, resumed))
            try:
                self.stages.save(index, run)
            except Exception as error:
                error.add_note(f"keeping what pass {self.passes[index].name!r} (number {index + 1}) made")
                raise
        return run

    def _step(self, index: int, run: Run, ctx: PassContext) -> Run:
        step = self.passes[index]
        ctx.progress.say(f"{index + 1}. {step.name}")
        started = time.monotonic() - ctx.analyses.seconds
        try:
            step.requires(run.graph, ctx)
            if self.hook is not None:
                self.hook.before_pass(step=step, graph=run.graph, ctx=ctx)
            result = step.run(run.graph, ctx)
            _check_result(step, result)
        except Exception as error:
            ran = ", ".join(r.name for r in run.records) or "none"
            error.add_note(f"in pass {step.name!r} (number {index + 1}); passes that ran before it: {ran}")
            raise
        if result.changed:
            ctx.analyses.drop_graph(step.preserves)
        if self.hook is not None:
            self.hook.after_pass(step=step, result=result, ctx=ctx)
        record = Record(
            index=index + 1,
            name=step.name,
            options=self.options(step),
            changed=result.changed,
            notes=result.notes,
        )
        return attrs.evolve(
            run,
            graph=result.graph,
            plan=result.plan if result.plan is not None else run.plan,
            records=(*run.records, record),
            # without what it asked about the teacher: that is paid by whoever asks first, and serves everyone
            seconds=(*run.seconds, time.monotonic() - ctx.analyses.seconds - started),
        )


def _check_result(step: Pass, result: Any) -> None:
    """A pass returns a PassResult whose graph is well formed; anything else is the pass's mistake."""
    if not isinstance(result, PassResult):
        raise QpassError(f"pass {step.name!r} must return a qpass.PassResult, not {type(result).__name__}")
    if not isinstance(result.graph, GraphModule):
        kind = type(result.graph).__name__
        raise QpassError(f"pass {step.name!r} must return a PassResult whose graph is a GraphModule, not {kind}")
    try:
        result.graph.graph.lint()
        result.graph.recompile()
    except Exception as error:
        raise PreconditionError(
            f"pass {step.name!r} left a malformed graph: {str(error).splitlines()[0]}"
        ) from error
