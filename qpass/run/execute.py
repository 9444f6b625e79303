"""One run, from a checked recipe to its report."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.fx import GraphModule

from qpass.activations import Samples
from qpass.analysis import Analyses, Analysis
from qpass.artifact.folder import GRAPH, Artifact, load_artifact, save
from qpass.device import machine_of, select_device
from qpass.errors import ModelError, QpassError, RecipeError
from qpass.evaluator import Evaluator, Metric, Observation, Subject, check_metrics, check_observation, refuse
from qpass.files import write_file
from qpass.graph import trace
from qpass.manager import PassContext, PassManager, Run
from qpass.model import ModelAdapter
from qpass.plugins import Catalog
from qpass.progress import Progress, peak_memory_mb
from qpass.recipe import Recipe, bytes_of
from qpass.recipe.structure import to_data
from qpass.report import render, report, to_json
from qpass.report.data import plain
from qpass.run.fingerprint import digest, facts, ground, ops_code, own_code, stage_prints, trace_print, versions
from qpass.run.folder import KeptStages, RunFolder
from qpass.run.manifest import manifest, to_text
from qpass.sampling import make_scheduler


@attrs.frozen(kw_only=True, eq=False)
class RunResult:
    """A finished run: its folder, the report, and what varies between equal runs."""

    folder: Path
    report: Mapping[str, Any]
    timings: Mapping[str, Any]


def run(
    recipe: Recipe,
    *,
    catalog: Catalog,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    shared: Path | None = None,
) -> RunResult:
    """Carry out a recipe in a folder; what an earlier run already did there under equal conditions is kept.

    Runs given one folder as `shared` trace, sample and observe the original model once between them.
    """
    started = time.monotonic()
    progress = progress or Progress()
    where = select_device(device)
    path = out or Path("runs") / f"{recipe.name}-{recipe.model.name}"
    check(recipe, catalog)
    folder = RunFolder(path=path, catalog=catalog, shared=shared)
    with folder.held(progress.say):
        base = ground(recipe, where.type)
        changed = folder.changed(facts(recipe, base))
        if changed:
            folder.calibration.unlink(
                missing_ok=True
            )  # maybe of another set; the stages that are kept bring theirs
        if changed:
            progress.say(f"changed since the last run in {path}: {', '.join(changed)}; redoing what depends on it")
        write_file(path / "recipe.toml", recipe.toml())
        ctx = context(recipe, catalog, where, progress, folder, base)
        done = quantize(recipe, ctx, folder, base)
        seen = observe(recipe, ctx, folder, digest(base))
        ctx.progress.say("report")
        return _report(recipe, ctx, folder, done, seen, time.monotonic() - started)


def check(recipe: Recipe, catalog: Catalog) -> None:
    """The graph check: trace the model's shape without reading a weight, and ask every pass and evaluator."""
    adapter = recipe.model
    example = tuple(part.to("meta") for part in adapter.example())
    graph = trace(adapter.skeleton(), example, call=adapter.call, dynamic=adapter.dynamic())
    ctx = PassContext(
        model=adapter, reference=graph, sampling=recipe.sampling, calibration=recipe.calibration, catalog=catalog
    )
    questions: list[tuple[str, Callable[[], Any]]] = [
        (f"pass {step.name!r}", partial(step.requires, graph, ctx)) for step in recipe.passes
    ]
    questions += [(f"evaluator {e.name!r}", partial(refuse, e, adapter)) for e in recipe.evaluators]
    if adapter.cannot_sample() is None:
        schedule = adapter.sampler().scheduler_config
        questions.append(("sampling", partial(make_scheduler, recipe.sampling, schedule)))
        questions.append(("sampling", partial(adapter.check_sampling, recipe.sampling)))
    problems: list[str] = []
    for asked, question in questions:
        try:
            question()
        except RecipeError as error:
            problems += error.problems
        except QpassError as error:
            problems.append(str(error))
        except Exception as error:
            error.add_note(f"in {asked}, asked about the model before its weights are read")
            raise
    if problems:
        raise RecipeError(problems, f"recipe {recipe.name!r} on {adapter.name!r}")


def context(
    recipe: Recipe,
    catalog: Catalog,
    device: torch.device,
    progress: Progress,
    folder: RunFolder,
    base: Mapping[str, Any],
) -> PassContext:
    """Everything the passes are given, the traced teacher among it."""
    mark = digest(base)
    return PassContext(
        model=recipe.model,
        reference=teacher(recipe.model, folder, base, progress).to(device),
        sampling=recipe.sampling,
        calibration=recipe.calibration,
        catalog=catalog,
        seed=recipe.seed,
        device=device,
        analyses=Analyses(
            load=lambda question: folder.read_analysis(mark, question),
            save=lambda question, tensors: folder.write_analysis(mark, question, tensors),
            found=partial(_describe, recipe, folder),
        ),
        progress=progress,
        scratch=folder.stages,
        shared_scratch=folder.shared,
        memory_budget=bytes_of(recipe.memory_budget),
    )


def _describe(recipe: Recipe, folder: RunFolder, question: Analysis[Any], answer: Any) -> None:
    """Say beside the run what it is calibrated on, once that is known."""
    if question == recipe.calibration and isinstance(answer, Samples):
        write_file(folder.calibration, to_text(manifest(question, recipe.seed, answer)))


def teacher(adapter: ModelAdapter, folder: RunFolder, base: Mapping[str, Any], progress: Progress) -> GraphModule:
    """The original model as a graph: the one that runs share, where they do."""
    mark = trace_print(adapter, base)
    if (kept := folder.teacher(mark)) is not None:
        return kept
    progress.say(f"trace {adapter.name}")
    made = traced(adapter)
    folder.write_teacher(mark, made)
    # whoever shares it reads it from there, the first too: what is found under a hash of its code must be one thing
    return folder.teacher(mark) or made


def traced(adapter: ModelAdapter) -> GraphModule:
    """The adapter's model as a graph."""
    module = adapter.load()
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(
                f"the weights of {adapter.name!r} hold NaN or infinities, first in {name!r}; quantization would "
                "spread them, so mend the checkpoint or fetch it again"
            )
    return trace(module, adapter.example(), call=adapter.call, dynamic=adapter.dynamic())


def quantize(recipe: Recipe, ctx: PassContext, folder: RunFolder, base: Mapping[str, Any]) -> Run:
    """Run the passes and write the artifact."""
    stages = KeptStages(folder, stage_prints(recipe, base), [step.name for step in recipe.passes])
    manager = PassManager(recipe.passes, ctx.catalog.hook, options=to_data, stages=stages)
    done = manager.run(copy.deepcopy(ctx.reference), ctx)
    save(Artifact(graph=done.graph, plan=done.plan, about=about(recipe)), folder.artifact, ctx.catalog)
    return done


def about(recipe: Recipe) -> dict[str, Any]:
    """What an artifact says of itself. How it was measured is not part of it."""
    data = recipe.data()
    kept = ("seed", "model", "sampling", "calibration", "passes")
    return {
        "recipe": {key: data[key] for key in kept},
        "weights": recipe.model.fingerprint(),
        "config": dict(recipe.model.config()),
        "signature": recipe.model.signature(),
        "versions": versions(),
    }


Seen = Mapping[str, Mapping[str, Observation]]


def observe(recipe: Recipe, ctx: PassContext, folder: RunFolder, base: str) -> Seen:
    """What every evaluator sees of the original, then of the artifact as it loads from disk."""
    quantized = load_artifact(folder.artifact, ctx.catalog).graph.to(ctx.device)
    written = (folder.artifact / GRAPH).read_text(encoding="utf-8")
    content = digest([written, ops_code(quantized, ctx.catalog.ops)])
    seen: dict[str, dict[str, Observation]] = {}
    for evaluator in recipe.evaluators:
        ctx.progress.say(f"evaluate {evaluator.name}")
        found: dict[str, Observation] = {}
        looks = [base, to_data(evaluator), own_code(evaluator), evaluator.fingerprint()]
        if not evaluator.exact:
            looks.append(machine_of(ctx.device))
        for subject in (
            Subject(role="original", graph=ctx.reference),
            Subject(role="quantized", graph=quantized, folder=folder.artifact),
        ):
            # times differ from one look to the next, so those of another run are no answer
            common = subject.role == "original" and evaluator.exact
            mark = digest(["" if common else content, *looks])
            kept = folder.read_observation(evaluator.name, subject.role, mark, common)
            if kept is None:
                ctx.analyses.drop_graph(frozenset())  # those of the model looked at before
                kept = _observe(evaluator, subject, ctx)
                folder.write_observation(evaluator.name, subject.role, mark, kept, common)
                # scored as it comes from disk, the first time too: types and order are then those of every run
                kept = folder.read_observation(evaluator.name, subject.role, mark, common) or kept
            found[subject.role] = kept
        seen[evaluator.name] = found
    return seen


def _observe(evaluator: Evaluator, subject: Subject, ctx: PassContext) -> Observation:
    try:
        with torch.no_grad():
            seen = evaluator.observe(subject, ctx)
        check_observation(evaluator, seen)
    except Exception as error:
        error.add_note(f"in evaluator {evaluator.name!r}, looking at the {subject.role} model")
        raise
    return seen


def _score(evaluator: Evaluator, seen: Mapping[str, Observation]) -> Sequence[Metric]:
    try:
        return check_metrics(evaluator, evaluator.score(seen["quantized"], seen["original"]))
    except Exception as error:
        error.add_note(f"in evaluator {evaluator.name!r}, scoring what it saw")
        raise


def _report(
    recipe: Recipe, ctx: PassContext, folder: RunFolder, done: Run, seen: Seen, seconds: float
) -> RunResult:
    """Write report.json, timings.json and report.html."""
    exact: list[tuple[str, Metric]] = []
    varying: list[tuple[str, Metric]] = []
    for evaluator in recipe.evaluators:
        for metric in _score(evaluator, seen[evaluator.name]):
            (exact if evaluator.exact else varying).append((evaluator.name, metric))
    data = report(recipe.data(), recipe.seed, versions(), ctx.device.type, done.records, exact)
    if recipe.notes:
        data["notes"] = list(recipe.notes)
    timings = {
        "passes": [
            {"index": record.index, "pass": record.name, "seconds": spent, "resumed": resumed}
            for record, spent, resumed in zip(done.records, done.seconds, done.resumed, strict=False)
        ],
        "metrics": [{"evaluator": name, **attrs.asdict(metric)} for name, metric in varying],
        "teacher_seconds": ctx.analyses.seconds,  # what passes and evaluators asked about the original
        "total_seconds": seconds,
        "peak_memory_mb": max(peak_memory_mb(), done.peak_memory_mb),
    }
    write_file(folder.path / "report.json", to_json(data))
    write_file(folder.path / "timings.json", json.dumps(plain(timings), indent=1))
    write_file(folder.path / "report.html", render(data, seen, timings))
    folder.catalog.hook.report_ready(report=data, folder=folder.path)
    return RunResult(folder=folder.path, report=data, timings=timings)
