"""Evaluators of a plugin that break their contract."""

from __future__ import annotations

import json

import pytest
from endings import Run

EVALUATOR = """
import attrs
import numpy as np
import qpass
import torch
from qpass.evaluator import Series

@attrs.frozen(kw_only=True)
class Strange(qpass.Evaluator):
    \"\"\"Sees something strange.\"\"\"
    name = "strange"
    def observe(self, subject, ctx):
        {observe}
    def score(self, candidate, reference):
        {score}

@qpass.hookimpl
def register_evaluators():
    return [Strange]
"""


class TestEvaluator:
    """An evaluator that breaks its contract, in a plugin file."""

    SEEN = "return qpass.Observation(numbers={'a': 1.0})"
    REST = '[[evaluators]]\nuse = "strange"\n'

    @pytest.mark.parametrize(
        ("observe", "said"),
        [
            ("return None", "must return a qpass.Observation from observe, not NoneType"),
            (
                "return qpass.Observation(numbers={'a': torch.ones(1)})",
                "numbers['a'] must be a number, not Tensor",
            ),
            ("return qpass.Observation(series={'a': [1, 2]})", "series['a'] must be a Series, not list"),
            (
                "return qpass.Observation(series={'a': Series(title='a', x=(1.0,), y=())})",
                "series['a'] has 1 x and 0 y",
            ),
            (
                "return qpass.Observation(images={'a': np.zeros((2, 3, 8, 8))})",
                "images['a'] must be uint8 of N x H x W x 3, not float64 of (2, 3, 8, 8)",
            ),
        ],
        ids=["nothing", "number", "series", "lengths", "images"],
    )
    def test_a_wrong_observation(self, run: Run, observe: str, said: str) -> None:
        """The rule is said with what came instead, before anything is reported."""
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(observe=observe, score="return ()"))
        assert outcome.code == 2
        assert said in outcome.said
        assert "in evaluator 'strange', looking at the original model" in outcome.said
        assert not {"report.json", "report.html"} & outcome.files

    @pytest.mark.parametrize(
        ("score", "said"),
        [
            ("return None", "must return a sequence of qpass.Metric, not NoneType"),
            ("return [1.0]", "must return qpass.Metric objects, not float"),
            ("return [qpass.Metric(name='m', value=torch.ones(1))]", "m must be a number, not Tensor"),
        ],
        ids=["nothing", "number", "tensor"],
    )
    def test_a_wrong_score(self, run: Run, score: str, said: str) -> None:
        """So is this."""
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(observe=self.SEEN, score=score))
        assert outcome.code == 2
        assert said in outcome.said
        assert "in evaluator 'strange', scoring what it saw" in outcome.said
        assert not {"report.json", "report.html"} & outcome.files

    @pytest.mark.parametrize("where", ["observe", "score"])
    def test_one_that_raises(self, run: Run, where: str) -> None:
        """Exit code 1, with the evaluator's name."""
        bodies = {"observe": self.SEEN, "score": "return ()", where: "raise RuntimeError('boom')"}
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(**bodies))
        assert outcome.code == 1
        assert "RuntimeError: boom\n  in evaluator 'strange', " in outcome.said

    def test_numbers_of_numpy(self, run: Run) -> None:
        """What numpy returns is a number too, whatever its precision, and one that is not finite is null."""
        observe = (
            "return qpass.Observation(numbers={'a': np.float32(0.5), 'b': np.int64(2)}, "
            "series={'s': Series(title='s', x=tuple(np.arange(2)), y=tuple(np.ones(2, np.float32)))})"
        )
        score = (
            "return [qpass.Metric(name='m', value=candidate.numbers['a'] / candidate.numbers['b']), "
            "qpass.Metric(name='n', value=np.float32('nan'))]"
        )
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(observe=observe, score=score))
        assert outcome.code == 0, outcome.err
        metrics = json.loads((outcome.out / "report.json").read_text())["metrics"]
        assert [metric["value"] for metric in metrics] == [0.25, None]
