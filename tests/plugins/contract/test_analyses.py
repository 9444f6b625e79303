"""What every analysis keeps to."""

from __future__ import annotations

from typing import Any

import torch
from installed import every, made, short

from qpass.manager import PassContext


@every("analyses")
class TestAnalyses:
    """Questions about a model."""

    def test_equal_questions(self, cls: Any) -> None:
        """Are equal, and have equal hashes, so that they are asked once."""
        assert made(cls) == made(cls)
        assert hash(made(cls)) == hash(made(cls))

    def test_class_vars(self, cls: Any) -> None:
        """It says what it is asked of; what is kept on disk is about the original."""
        assert cls.of in ("reference", "graph")
        assert isinstance(cls.stored, bool)

    def test_the_answer_keeps(self, cls: Any, context: PassContext) -> None:
        """What is stored and read back is what was computed; the same seed computes the same."""
        question = short(cls)
        graph = context.reference
        first, again = (question.compute(graph, context) for _ in range(2))
        if not cls.stored:
            return
        tensors, twice = question.dump(first), question.dump(again)
        assert all(torch.equal(tensors[name], twice[name]) for name in tensors | twice)
        back = question.dump(question.restore(tensors))
        assert all(torch.equal(tensors[name], back[name]) for name in tensors | back)
