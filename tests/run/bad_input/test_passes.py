"""Passes of a plugin that break their contract."""

from __future__ import annotations

import pytest
from endings import QUANTIZE, Run, stopped

PASS = """
import attrs
import qpass

@attrs.frozen(kw_only=True)
class Strange(qpass.Pass):
    \"\"\"Does something strange.\"\"\"
    name = "strange"
    def requires(self, graph, ctx):
        {requires}
    def run(self, graph, ctx):
        {run}

@qpass.hookimpl
def register_passes():
    return [Strange]
"""


class TestPass:
    """A pass that breaks its contract, in a plugin file."""

    STRANGE = '[[passes]]\nuse = "strange"\n' + QUANTIZE

    def plugin(
        self, run: str = "return qpass.PassResult(graph=graph, changed=False)", requires: str = "pass"
    ) -> str:
        return PASS.format(run=run, requires=requires)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("return None", "pass 'strange' must return a qpass.PassResult, not NoneType"),
            ("return graph", "pass 'strange' must return a qpass.PassResult, not GraphModule"),
            (
                "return qpass.PassResult(graph=None, changed=True)",
                "pass 'strange' must return a PassResult whose graph is a GraphModule, not NoneType",
            ),
            (
                "next(n for n in graph.graph.nodes if n.op == 'call_module').target = 'gone'; "
                "return qpass.PassResult(graph=graph, changed=True)",
                "pass 'strange' left a malformed graph: ",
            ),
            (
                "a, *_, b = graph.graph.nodes; b.append(a); return qpass.PassResult(graph=graph, changed=True)",
                "pass 'strange' left a malformed graph: ",
            ),
        ],
        ids=["nothing", "the graph", "no graph", "a module that is gone", "nodes out of order"],
    )
    def test_a_wrong_result(self, run: Run, body: str, said: str) -> None:
        """The rule is said in a line, with what came instead."""
        outcome = run(rest=self.STRANGE, plugin=self.plugin(body))
        stopped(outcome, said, "in pass 'strange' (number 1); passes that ran before it: none")
        assert outcome.said.count("\n") <= 3

    def test_a_function_that_no_artifact_may_hold(self, run: Run) -> None:
        """The hook that allows it is named, and the pass."""
        body = (
            "n = next(n for n in graph.graph.nodes if n.op == 'call_module'); n.op = 'call_function'; "
            "n.target = print; return qpass.PassResult(graph=graph, changed=True)"
        )
        stopped(
            run(rest=self.STRANGE, plugin=self.plugin(body)),
            "which is not on the list of ops an artifact may hold",
            "in the hook register_ops",
            "pass 'strange' (number 1)",
        )

    def test_one_that_raises(self, run: Run) -> None:
        """Exit code 1, with the pass's name and without a traceback."""
        outcome = run(rest=self.STRANGE, plugin=self.plugin("raise RuntimeError('boom')"))
        stopped(
            outcome, "RuntimeError: boom\n  in pass 'strange' (number 1)", "--debug shows the traceback", code=1
        )

    def test_one_that_raises_under_debug(self, run: Run) -> None:
        """The traceback leads to the plugin's own line."""
        outcome = run("--debug", rest=self.STRANGE, plugin=self.plugin("raise RuntimeError('boom')"))
        assert outcome.code == 1
        assert "Traceback (most recent call last):" in outcome.err
        assert "strange.py" in outcome.err

    def test_one_that_cannot_be_asked(self, run: Run) -> None:
        """`requires` is asked on a model without weights; one that fails there is named."""
        outcome = run(rest=self.STRANGE, plugin=self.plugin(requires="raise RuntimeError('boom')"))
        assert outcome.code == 1
        assert "in pass 'strange', asked about the model before its weights are read" in outcome.err
        assert not outcome.out.exists()

    def test_what_worked_is_kept(self, run: Run) -> None:
        """The same command, with the pass mended, goes on from the stages before it."""
        rest = QUANTIZE.replace(
            '[[passes]]\nuse = "simulate"', '[[passes]]\nuse = "strange"\n[[passes]]\nuse = "simulate"'
        )
        stopped(run(rest=rest, plugin=self.plugin("raise RuntimeError('boom')")), "before it: assign", code=1)
        mended = run(rest=rest, plugin=self.plugin())
        assert mended.code == 0
        assert "1. assign: kept from an earlier run" in mended.err
        assert "strange: kept" not in mended.err
