"""On the same features, our figures are pytorch-fid's and torch-fidelity's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qpass_evaluators.statistics.frechet import frechet
from qpass_evaluators.statistics.kernel import kernel_distances
from qpass_evaluators.statistics.manifold import precision_recall
from qpass_evaluators.statistics.moments import gather
from qpass_evaluators.statistics.score import scores, shuffled

PEERS = pytest.importorskip("torch_fidelity.metrics", reason="torch-fidelity is in the test extra")

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Two sets of 300 features of 128 dimensions, positive and correlated as pooled activations are."""
    source = torch.Generator().manual_seed(0)
    mix = torch.randn(128, 128, generator=source) / 128**0.5
    a, b = (torch.randn(300, 128, generator=source) for _ in range(2))
    return (a @ mix).relu(), (1.1 * b @ mix + 0.05).relu()


def test_frechet(pair: Pair) -> None:
    """pytorch-fid's and torch-fidelity's arithmetic, within 1e-3 (in fact 1e-5)."""
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = pair
    ours = frechet(*(gather(rows.split(64), 128) for rows in pair))
    doubles = [rows.double().numpy() for rows in pair]
    theirs = calculate_frechet_distance(*(f(x) for x in doubles for f in (lambda x: x.mean(0), cov)))
    assert ours == pytest.approx(theirs, abs=1e-5)
    stats = [fid_features_to_statistics(rows) for rows in (a, b)]
    fidelity = fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert ours == pytest.approx(fidelity, abs=1e-4)  # its means are summed in fp32


def cov(rows: np.ndarray) -> np.ndarray:
    return np.cov(rows, rowvar=False)


@pytest.mark.parametrize(("subsets", "size", "seed"), [(10, 50, 2020), (3, 300, 7)])
def test_kernel(pair: Pair, subsets: int, size: int, seed: int) -> None:
    """torch-fidelity's KID from the same seed, hence the same subsets, within 1e-6; its spread too."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    theirs = kid_features_to_metric(*pair, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False)
    ours = kernel_distances(*pair, subsets=subsets, size=size, seed=seed)
    assert float(ours.mean()) == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert float(ours.std(correction=0)) == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall(pair: Pair, neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity's, within 1e-6, however narrow the bands of distances are."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = pair[0], pair[1][:211]
    theirs = prc_features_to_metric(a, b, prc_neighborhood=neighbours, verbose=False)
    for band in (1024, 37):
        monkeypatch.setattr("qpass_evaluators.statistics.manifold.BAND", band)
        precision, recall = precision_recall(a, b, neighbours)
        assert precision == pytest.approx(theirs["precision"], abs=1e-6)
        assert recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0 < precision < 1
    assert 0 < recall < 1


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_score(pair: Pair, splits: int) -> None:
    """torch-fidelity's Inception Score of the same logits, within 1e-9: in the order given and shuffled."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 4 * pair[0]
    for shuffle, rows in ((False, logits), (True, shuffled(logits, 2020))):
        theirs = isc_features_to_metric(logits, splits, shuffle, 2020)
        ours = scores(rows, splits)
        assert float(ours.mean()) == pytest.approx(theirs["inception_score_mean"], abs=1e-9)
        assert float(ours.std(correction=0)) == pytest.approx(theirs["inception_score_std"], abs=1e-9)


def test_a_class_that_never_shows() -> None:
    """Logits so low that a probability is 0 give a number, not NaN."""
    logits = torch.full((8, 3), -1e4)
    logits[:, 0] = 0
    assert float(scores(logits, 2).mean()) == pytest.approx(1)
