"""The manager runs what it is given, in order, checks it, and forgets what a rewrite made untrue."""

from __future__ import annotations

import copy
import time
from typing import ClassVar

import attrs
import pytest
import torch

from qpass.analysis import Analysis
from qpass.errors import PreconditionError, QpassError
from qpass.manager import Pass, PassManager, PassResult, Stages
from qpass.schedule import Step, StepPlan


@attrs.frozen(kw_only=True)
class Count(Analysis):
    """How many nodes the graph has."""

    name: ClassVar[str] = "count"

    def compute(self, graph, ctx):
        return len(graph.graph.nodes)


@attrs.frozen(kw_only=True)
class TeacherCount(Count):
    """The same of the teacher."""

    name: ClassVar[str] = "teacher-count"
    of: ClassVar[str] = "reference"


@attrs.frozen(kw_only=True)
class Double(Pass):
    """Doubles the output."""

    name: ClassVar[str] = "double"

    def run(self, graph, ctx):
        output = next(n for n in graph.graph.nodes if n.op == "output")
        with graph.graph.inserting_before(output):
            twice = graph.graph.call_function(torch.ops.aten.mul.Tensor, (output.args[0], 2))
        output.update_arg(0, twice)
        return PassResult(graph=graph, changed=True, plan=StepPlan(steps=(Step(t=1, t_prev=-1),)), notes={"by": 2})


@attrs.frozen(kw_only=True)
class Keeps(Double):
    """Doubles, and says that counting is still right."""

    name: ClassVar[str] = "keeps"
    preserves: ClassVar[frozenset] = frozenset({Count})


@attrs.frozen(kw_only=True)
class Nothing(Pass):
    """Changes nothing; `result` is what it returns instead, if given."""

    name: ClassVar[str] = "nothing"
    result: object = None

    def run(self, graph, ctx):
        return self.result or PassResult(graph=graph, changed=False)


def test_runs_in_order_and_records(context):
    """Two doublings quadruple the output; the records and the last plan tell of both."""
    inputs = context.model.example(2)
    run = PassManager([Double(), Nothing(), Double()]).run(copy.deepcopy(context.reference), context)
    assert torch.allclose(run.graph(*inputs), 4 * context.reference(*inputs))
    assert [(r.index, r.name, r.changed) for r in run.records] == [
        (1, "double", True),
        (2, "nothing", False),
        (3, "double", True),
    ]
    assert run.records[0].notes == {"by": 2}
    assert run.plan.steps[0].t == 1


def test_analyses_are_dropped_when_the_graph_changes(context):
    """An unchanged graph keeps its answers, a changed one those that the pass preserves, the teacher all."""
    graph = copy.deepcopy(context.reference)
    before, teacher = context.get(Count(), graph), context.get(TeacherCount(), graph)
    graph = PassManager([Nothing(), Keeps()]).run(graph, context).graph
    assert context.get(Count(), graph) == before
    graph = PassManager([Double()]).run(graph, context).graph
    assert context.get(Count(), graph) == before + 2
    assert context.get(TeacherCount(), graph) == teacher


def test_a_pass_does_not_pay_for_the_teacher(context):
    """Time spent on a question about the teacher is counted apart, once, though one question asks another."""

    @attrs.frozen(kw_only=True)
    class Slow(TeacherCount):
        name: ClassVar[str] = "slow"

        def compute(self, graph, ctx):
            time.sleep(0.2)
            return ctx.get(TeacherCount(), graph)

    @attrs.frozen(kw_only=True)
    class Asks(Nothing):
        name: ClassVar[str] = "asks"

        def run(self, graph, ctx):
            ctx.get(Slow(), graph)
            ctx.get(Slow(), graph)
            return super().run(graph, ctx)

    started = time.monotonic()
    run = PassManager([Asks()]).run(copy.deepcopy(context.reference), context)
    whole = time.monotonic() - started
    assert 0.2 <= context.analyses.seconds <= whole
    assert sum(run.seconds) <= whole - 0.2


def test_hooks_see_every_pass(context):
    """before_pass and after_pass are called around each, with what the hookspecs promise."""
    calls = []

    class Hook:
        def before_pass(self, step, graph, ctx):
            calls.append(("before", step.name))

        def after_pass(self, step, result, ctx):
            calls.append(("after", step.name, result.changed))

    PassManager([Double(), Nothing()], hook=Hook()).run(copy.deepcopy(context.reference), context)
    assert calls == [
        ("before", "double"),
        ("after", "double", True),
        ("before", "nothing"),
        ("after", "nothing", False),
    ]


def test_a_failing_pass_is_named_with_those_before_it(context):
    """Any exception keeps its type and gains a note: which pass, and what ran before."""

    @attrs.frozen(kw_only=True)
    class Fails(Pass):
        name: ClassVar[str] = "fails"

        def run(self, graph, ctx):
            raise KeyError("oops")

    with pytest.raises(KeyError) as error:
        PassManager([Double(), Fails()]).run(copy.deepcopy(context.reference), context)
    assert error.value.__notes__ == ["in pass 'fails' (number 2); passes that ran before it: double"]


def test_a_wrong_result_is_the_passs_mistake(context):
    """Returning anything but a PassResult, or a malformed graph, is an error that names the pass."""
    with pytest.raises(QpassError, match="pass 'nothing' must return a"):
        PassManager([Nothing(result="graph")]).run(copy.deepcopy(context.reference), context)
    broken = copy.deepcopy(context.reference)
    nodes = list(broken.graph.nodes)
    nodes[0].append(nodes[-2])  # used before it is made
    with pytest.raises(PreconditionError, match="pass 'nothing' left a malformed graph"):
        PassManager([Nothing(result=PassResult(graph=broken, changed=True))]).run(broken, context)


@attrs.frozen(kw_only=True)
class Where(Pass):
    """Notes on which devices the graph's tensors are."""

    name: ClassVar[str] = "where"

    def run(self, graph, ctx):
        return PassResult(
            graph=graph, changed=False, notes={"on": sorted({p.device.type for p in graph.parameters()})}
        )


class InMemory(Stages):
    """Keeps the first stage."""

    kept = None

    def load(self, index):
        return self.kept if index == 0 else None

    def save(self, index, run):
        if index == 0:
            self.kept = attrs.evolve(run, graph=copy.deepcopy(run.graph))


def test_a_kept_stage_goes_on_where_the_run_is(traced, context):
    """A stage is read onto the CPU; what comes after it finds the graph on the run's device."""
    stages = InMemory()
    PassManager((Nothing(), Where()), stages=stages).run(copy.deepcopy(traced[1]), context)
    there = attrs.evolve(context, device=torch.device("meta"))
    done = PassManager((Nothing(), Where()), stages=stages).run(copy.deepcopy(traced[1]), there)
    assert done.records[1].notes == {"on": ["meta"]}
