"""Real images at full size: `QPASS_DATA=... pytest -m slow tests/evaluators`. Half an hour on two cores."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qpass_evaluators import against
from qpass_evaluators.features import ROWS, chained
from qpass_evaluators.networks import Inception
from qpass_evaluators.statistics.frechet import frechet
from qpass_evaluators.statistics.kernel import kernel_distances
from qpass_evaluators.statistics.manifold import precision_recall
from qpass_evaluators.statistics.moments import gather
from qpass_evaluators.statistics.score import scores, shuffled

from qpass.images import open_images

sys.path.insert(0, str(Path(__file__).parent / "networks"))
import peers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("QPASS_DATA" not in os.environ, reason="QPASS_DATA names the folder that holds cifar10/"),
]
COUNT = 2_000
FID_TEST = 3.152  # of the 10,000 test images, as evaluators/README.md has it
SIDES = ("cifar10-test", "cifar10-train")

Features = dict[str, torch.Tensor]
Pair = tuple[Features, Features]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """All outputs of the network for the first 2,000 images of either side, random classes among them."""
    file = tmp_path_factory.mktemp("weights") / "full.pth"
    torch.save(peers.state_dict(), file)
    network = Inception(weights=str(file))
    found = []
    for name in SIDES:
        batches = itertools.islice(open_images(name).batches(250), COUNT // 250)
        parts = [network.features(batch) for batch in batches]
        found.append({output: torch.cat([part[output] for part in parts]) for output in parts[0]})
    return found[0], found[1]


def by_pytorch_fid(*sides: np.ndarray) -> float:
    from pytorch_fid.fid_score import calculate_frechet_distance

    doubles = [side.astype(np.float64) for side in sides]
    moments = [moment for side in doubles for moment in (side.mean(0), np.cov(side, rowvar=False))]
    return float(calculate_frechet_distance(*moments))


def test_fid(pair: Pair) -> None:
    """pytorch-fid's and torch-fidelity's arithmetic on the same features, within 1e-3."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = (side["pool"] for side in pair)
    ours = frechet(*(gather(rows.split(256), 2048) for rows in (a, b)))
    assert ours == pytest.approx(by_pytorch_fid(a.numpy(), b.numpy()), abs=1e-3)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(rows) for rows in (a, b)), False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], abs=1e-3)


def test_sfid(pair: Pair) -> None:
    """The map that a hook sees in pytorch-fid's own network, through pytorch-fid's own distance."""
    net, seen = peers.pytorch_fid(), []
    net.blocks[2][6].branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output[:, :7]))
    count = 300
    for name in SIDES:
        planes = torch.from_numpy(next(open_images(name).batches(count))).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            for batch in planes.split(50):
                net(batch.float() / 255)
    maps = torch.cat(seen).flatten(1).numpy()
    theirs = by_pytorch_fid(maps[:count], maps[count:])
    ours = frechet(*(gather(side["spatial"][:count].split(256), 2023) for side in pair))
    assert ours == pytest.approx(theirs, abs=1e-2, rel=1e-4)


def test_kid_precision_recall_and_score(pair: Pair) -> None:
    """torch-fidelity's on the same features and subsets: within 1e-6, the score within 1e-5."""
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = (side["pool"] for side in pair)
    kid = kid_features_to_metric(a, b, kid_subsets=100, kid_subset_size=1000, rng_seed=2020, verbose=False)
    ours = kernel_distances(a, b, subsets=100, size=1000, seed=2020)
    assert float(ours.mean()) == pytest.approx(kid["kernel_inception_distance_mean"], abs=1e-6)
    prc = prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
    assert precision_recall(a, b, 3) == pytest.approx((prc["precision"], prc["recall"]), abs=1e-6)
    logits = pair[0]["logits"]
    isc = isc_features_to_metric(logits, 10, True, 2020)
    score = scores(shuffled(logits, 2020), 10).mean()
    assert float(score) == pytest.approx(isc["inception_score_mean"], abs=1e-5)


RUN = """\
import resource, sys
from qpass.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def command(work: Path) -> list[str]:
    """10,000 images, three metrics, features kept on disk; the peak of memory is the last word on stderr."""
    how = ["--against", "cifar10-train", "--metrics", "fid,sfid,classifier_score", "--json", "--work", str(work)]
    return [sys.executable, "-c", RUN, "measure", "cifar10-test", *how]


def values(text: str) -> dict[str, Any]:
    return {metric["name"]: metric["value"] for metric in json.loads(text)["metrics"]}


def test_ten_thousand_images(tmp_path: Path) -> None:
    """Under 3 GB; killed on the way and started again, the figures are the same to the last digit; FID is known."""
    unbroken = subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, text=True)
    assert int(unbroken.stderr.split()[-1]) * 1024 < 3e9
    work = tmp_path / "broken"
    with subprocess.Popen(command(work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list(work.rglob("*.safetensors"))) < 5:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    again = subprocess.run(command(work), check=True, capture_output=True, text=True)
    assert values(again.stdout) == values(unbroken.stdout)
    assert values(again.stdout)["fid"] == pytest.approx(FID_TEST, abs=0.01)


def test_the_shipped_references_are_of_these_images() -> None:
    """They hold the hash of all 50,000, pixel by pixel."""
    digest = ""
    for batch in open_images("cifar10-train").batches(ROWS):
        digest = chained(digest, hashlib.sha256(batch.tobytes()).hexdigest())
    found = against.shipped()
    assert found
    assert {(one.count, one.about["pixels"]) for one in found} == {(50_000, digest)}
