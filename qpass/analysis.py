"""Facts computed once and shared: calibration sets, sampled images, recorded activations."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch.fx import GraphModule

if TYPE_CHECKING:
    from qpass.manager import PassContext

T = TypeVar("T")
Tensors = Mapping[str, torch.Tensor]


class Analysis(ABC, Generic[T]):
    """A question about a model. Frozen and hashable, so that equal questions are computed once.

    `of = "reference"` is asked of the full-precision teacher and never dropped; `of = "graph"` is asked of
    the graph as it stands and dropped when a pass changes it, unless the pass lists it in `preserves`.
    """

    name: ClassVar[str]
    of: ClassVar[Literal["reference", "graph"]] = "graph"
    stored: ClassVar[bool] = False  # True: `dump` and `restore` keep it in the run folder

    @abstractmethod
    def compute(self, graph: GraphModule, ctx: PassContext) -> T:
        """The answer."""

    def merge(self, parts: list[T]) -> T:
        """One answer from answers about parts of the data."""
        if len(parts) != 1:
            raise TypeError(f"analysis {self.name!r} does not say how to merge {len(parts)} parts")
        return parts[0]

    def dump(self, value: T) -> Tensors:
        """The answer as named tensors, for the run folder."""
        raise TypeError(f"analysis {self.name!r} is not stored")

    def restore(self, tensors: Tensors) -> T:
        """The inverse of `dump`."""
        raise TypeError(f"analysis {self.name!r} is not stored")


class Analyses:
    """Answers so far. `load` and `save`, where given, keep stored answers about the reference on disk.

    `found`, where given, is told every answer once, whether it was computed or loaded.
    """

    def __init__(
        self,
        load: Callable[[Analysis[Any]], Tensors | None] | None = None,
        save: Callable[[Analysis[Any], Tensors], None] | None = None,
        found: Callable[[Analysis[Any], Any], None] | None = None,
    ) -> None:
        self._load, self._save, self._found = load, save, found
        self._answers: dict[Analysis[Any], Any] = {}
        self._asked = 0  # questions about the reference that are being answered, one for the other
        self.seconds = 0.0  # spent on answers about the reference

    def get(self, analysis: Analysis[T], graph: GraphModule, ctx: PassContext) -> T:
        """The answer, computed the first time only."""
        if analysis not in self._answers:
            with self._timed(analysis):
                self._answers[analysis] = self._find(analysis, graph, ctx)
            if self._found:
                self._found(analysis, self._answers[analysis])
        answer: T = self._answers[analysis]
        return answer

    @contextmanager
    def _timed(self, analysis: Analysis[Any]) -> Iterator[None]:
        """Count the time of the outermost question about the reference."""
        if analysis.of != "reference":
            yield
            return
        self._asked += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._asked -= 1
            if not self._asked:
                self.seconds += time.monotonic() - started

    def _find(self, analysis: Analysis[T], graph: GraphModule, ctx: PassContext) -> T:
        on_disk = analysis.stored and analysis.of == "reference"
        if on_disk and self._load and (tensors := self._load(analysis)) is not None:
            return analysis.restore(tensors)
        answer = analysis.compute(ctx.reference if analysis.of == "reference" else graph, ctx)
        if on_disk and self._save:
            self._save(analysis, analysis.dump(answer))
        return answer

    def drop_graph(self, preserved: frozenset[type[Analysis[Any]]]) -> None:
        """Forget what was asked of a graph that has changed."""
        self._answers = {
            a: answer for a, answer in self._answers.items() if a.of == "reference" or type(a) in preserved
        }
