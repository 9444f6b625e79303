"""A pass under the stopwatch: on one model, with what it needs before it and what makes it countable after it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from qpass.artifact.folder import Artifact, save
from qpass.errors import PreconditionError, QpassError
from qpass.evaluator import Subject, finite
from qpass.manager import Pass, PassContext, PassManager
from qpass.memory import peak_rise
from qpass.model import ModelAdapter
from qpass.plugins import Catalog, catalog
from qpass.recipe import order_problems
from qpass.run.execute import traced
from qpass.sampling import Sampling

MODEL = "cifar10-dit"
BATCH = 8  # of the timed call, and of images that are drawn
STEPS = 10
EVALUATORS: Mapping[str, Mapping[str, int]] = {"drift": {"samples": 8, "rows": 4}, "size": {}}
FIGURES = {"sqnr_db": "sqnr", "psnr_db": "psnr", "packed_mb": "packed_mb"}


class CannotRunAloneError(QpassError):
    """A pass for which no others that are installed can prepare this model."""


def before(cls: type[Pass], known: Catalog, asked: frozenset[str] = frozenset()) -> list[type[Pass]]:
    """The passes that must stand before this one: for each fact the one that provides it with least help itself."""
    found: list[type[Pass]] = []
    for fact in sorted(cls.needs):
        if any(fact in giver.provides for giver in found):
            continue
        chains = []
        for name, giver in _passes(known).items():
            if fact in giver.provides and name not in asked and giver is not cls and not required(giver):
                try:
                    chains.append([*before(giver, known, asked | {cls.name}), giver])
                except CannotRunAloneError:
                    continue
        if not chains:
            raise CannotRunAloneError(
                f"{cls.name} needs {fact!r}, which no pass that is installed provides without options"
            )
        found += [giver for giver in min(chains, key=len) if giver not in found]
    if problems := order_problems([*found, cls], known):
        raise CannotRunAloneError("; ".join(problems))
    return found


def after(classes: Sequence[type[Pass]], known: Catalog) -> list[type[Pass]]:
    """What quantizes the model where the passes have not: only then does it have an error and a size to compare."""
    facts = frozenset().union(*(cls.provides for cls in classes))
    rest = [name for name, fact in (("assign", "specs"), ("simulate", "realised")) if fact not in facts]
    if "realised" in facts:
        return []
    found = [_passes(known)[name] for name in rest]
    return [] if order_problems([*classes, *found], known) else found


def _passes(known: Catalog) -> Mapping[str, type[Pass]]:
    return known.classes["passes"]


def required(cls: Any) -> list[str]:
    """The options of a plugin that have no default."""
    return [field.name for field in attrs.fields(cls) if field.init and field.default is attrs.NOTHING]


@attrs.define(eq=False)
class Trial:
    """One pass on one model; what it makes and how good that is are found out once."""

    step: Pass
    ctx: PassContext
    ready: GraphModule  # what the pass is given
    rest: tuple[Pass, ...]  # what comes after it
    folder: Path

    def fresh(self) -> GraphModule:
        """The pass's own copy of what it is given, and nothing known of it yet."""
        self.ctx.analyses.drop_graph(frozenset())
        return copy.deepcopy(self.ready)

    def rewrite(self, graph: GraphModule) -> GraphModule:
        """What is timed: the pass, with its checks."""
        return PassManager([self.step]).run(graph, self.ctx).graph

    @cached_property
    def made(self) -> GraphModule:
        """The model it makes, quantized. Made once before anything is timed, so that the teacher has been asked."""
        return PassManager(self.rest).run(self.rewrite(self.fresh()), self.ctx).graph

    @cached_property
    def figures(self) -> dict[str, float | None]:
        """Output SQNR and PSNR against the teacher, and MB on disk, as evaluators of a recipe report them."""
        save(Artifact(graph=self.made), self.folder, self.ctx.catalog)
        subjects = (
            Subject(role="original", graph=self.ctx.reference),
            Subject(role="quantized", graph=self.made, folder=self.folder),
        )
        found: dict[str, float | None] = {}
        for name, options in EVALUATORS.items():
            evaluator = self.ctx.catalog.find("evaluators", name)(**options)
            seen = []
            for subject in subjects:
                self.ctx.analyses.drop_graph(frozenset())
                with torch.no_grad():
                    seen.append(evaluator.observe(subject, self.ctx))
            metrics = evaluator.score(seen[1], seen[0])
            found |= {metric.name: finite(metric.value) for metric in metrics if metric.subject != "original"}
        return {key: found.get(name) for key, name in FIGURES.items()}


@attrs.define(eq=False)
class Workshop:
    """Teachers and trials that the benchmarks of one session share."""

    folder: Path
    _catalog: Catalog | None = None
    _contexts: dict[str, PassContext] = attrs.field(factory=dict)
    _trials: dict[tuple[str, str], Trial] = attrs.field(factory=dict)

    @property
    def catalog(self) -> Catalog:
        self._catalog = self._catalog or catalog()
        return self._catalog

    def trial(self, step: Pass, model: ModelAdapter | str) -> Trial:
        """The pass on that model; `CannotRunAloneError` or `PreconditionError` where it cannot be."""
        adapter: ModelAdapter = self.catalog.find("models", model)() if isinstance(model, str) else model
        key = (repr(step), repr(adapter))  # options may hold tables, which have no hash
        if key not in self._trials:
            first = before(type(step), self.catalog)
            rest = after([*first, type(step)], self.catalog)
            ctx = self._context(adapter)
            ctx.analyses.drop_graph(frozenset())
            ready = PassManager([cls() for cls in first]).run(copy.deepcopy(ctx.reference), ctx).graph
            step.requires(ready, ctx)
            self._trials[key] = Trial(
                step=step,
                ctx=ctx,
                ready=ready,
                rest=tuple(cls() for cls in rest),
                folder=self.folder / f"{len(self._trials)}-{step.name}",
            )
        return self._trials[key]

    def _context(self, adapter: ModelAdapter) -> PassContext:
        if repr(adapter) not in self._contexts:
            calibration = self.catalog.find("analyses", "uniform-steps")(samples=16, steps=STEPS)
            self._contexts[repr(adapter)] = PassContext(
                model=adapter,
                reference=traced(adapter),
                sampling=Sampling(steps=STEPS, batch=BATCH),
                calibration=calibration,
                catalog=self.catalog,
                scratch=self.folder / "scratch",
            )
        return self._contexts[repr(adapter)]


@attrs.frozen(kw_only=True, eq=False)
class PassBenchmark:
    """What the fixture `benchmark_pass` is: one timing in each test, as pytest-benchmark has it."""

    request: pytest.FixtureRequest
    workshop: Workshop

    @property
    def benchmark(self) -> Any:
        """pytest-benchmark's own fixture, asked for when there is something to time."""
        return self.request.getfixturevalue("benchmark")

    def rewrite(self, step: Pass, model: ModelAdapter | str = MODEL, rounds: int = 3) -> GraphModule:
        """Time the pass. `peak_memory_mb` is how far memory in use rises while it runs, / 10^6."""
        trial = self._trial(step, model)
        made, graph = trial.made, trial.fresh()
        rise = peak_rise(lambda: trial.rewrite(graph), trial.ctx.device)
        self.benchmark.group = f"passes on {trial.ctx.model.name}"
        self.benchmark.pedantic(trial.rewrite, setup=lambda: ((trial.fresh(),), {}), rounds=rounds)
        self._keep(trial, rise)
        return made

    def denoise(self, step: Pass, model: ModelAdapter | str = MODEL) -> GraphModule:
        """Time one call of the model it makes, at batch 8.

        `peak_memory_mb` is the model's own tensors and how far memory in use rises during a call, / 10^6.
        """
        trial = self._trial(step, model)
        inputs = trial.ctx.model.example(BATCH)

        def call() -> Tensor:
            with torch.no_grad():
                output: Tensor = trial.made(*inputs)
            return output

        call()
        held = sum(t.untyped_storage().nbytes() for t in trial.made.state_dict().values())
        rise = peak_rise(call, trial.ctx.device)
        self.benchmark.group = f"models made of {trial.ctx.model.name}"
        self.benchmark(call)
        self._keep(trial, held + rise)
        return trial.made

    def _trial(self, step: Pass, model: ModelAdapter | str) -> Trial:
        try:
            return self.workshop.trial(step, model)
        except (CannotRunAloneError, PreconditionError) as error:
            pytest.skip(str(error))

    def _keep(self, trial: Trial, memory: float) -> None:
        self.benchmark.extra_info.update(
            {"options": repr(trial.step), **trial.figures, "peak_memory_mb": memory / 1e6}
        )
