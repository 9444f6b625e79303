"""What every evaluator keeps to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from installed import every, run, short

from qpass.artifact import Artifact, save
from qpass.evaluator import EvaluationError, Metric, Subject, check_observation, refuse
from qpass.manager import PassContext
from qpass.plugins import Catalog
from qpass.report.data import plain

REFUSED = ("classifier", "classifier-score", "fd", "inception-score", "lpips")


@pytest.fixture(scope="module")
def quantized(traced: Any, catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny UNet with its weights rounded, and its artifact."""
    from qpass_passes.assign import Assign
    from qpass_passes.simulate import Simulate

    adapter, graph = traced
    ctx = PassContext(model=adapter, reference=graph, sampling=None, calibration=None, catalog=catalog)  # type: ignore[arg-type]
    done = run([Assign(weight="int4 channel", input="float", edge_input="float"), Simulate()], ctx)
    folder = tmp_path_factory.mktemp("subject") / "artifact"
    save(Artifact(graph=done), folder, catalog)
    return Subject(role="quantized", graph=done, folder=folder)


@every("evaluators")
class TestEvaluators:
    """Measures of a model."""

    def test_class_vars(self, cls: Any) -> None:
        """It says what it needs, and whether equal runs give equal values."""
        assert cls.needs in ("images", "model")
        assert isinstance(cls.exact, bool)

    def test_it_refuses_or_measures(
        self, cls: Any, context: PassContext, quantized: Subject, tmp_path: Path
    ) -> None:
        """Observations are well-formed and survive a merge; metrics are numbers with all that determines them."""
        np.savez(tmp_path / "eight.npz", arr_0=np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8))
        evaluator = short(cls)
        if "against" in attrs.fields_dict(cls):
            evaluator = attrs.evolve(evaluator, against=str(tmp_path / "eight.npz"))
        context = attrs.evolve(context, scratch=tmp_path)
        if cls.name in REFUSED:  # no weights, other images, or too few
            original = Subject(role="original", graph=context.reference)
            with pytest.raises(EvaluationError):  # noqa: PT012
                seen = evaluator.observe(original, context)
                evaluator.score(evaluator.observe(quantized, context), seen)
            return
        refuse(evaluator, context.model)
        assert isinstance(evaluator.fingerprint(), str)
        assert evaluator.fingerprint() == evaluator.fingerprint()
        original = Subject(role="original", graph=context.reference)
        with torch.no_grad():
            theirs, ours = (evaluator.observe(subject, context) for subject in (original, quantized))
        for seen in (theirs, ours):
            check_observation(evaluator, seen)
            assert seen.merge(type(seen)()).numbers == seen.numbers
        metrics = evaluator.score(ours, theirs)
        assert metrics
        for metric in metrics:
            assert isinstance(metric, Metric)
            assert re.fullmatch(r"[a-z0-9_]+", metric.name)
            assert metric.better in ("higher", "lower")
            json.dumps(plain(attrs.asdict(metric)), allow_nan=False)
        assert evaluator.score(ours, None) is not None
