"""Training: its loss, its randomness, resuming, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from qpass_models.diffusers_model import DiffusersModel
from qpass_models.train.__main__ import main
from qpass_models.train.average import Average
from qpass_models.train.cifar10 import Pictures, read
from qpass_models.train.export import export, load_weights
from qpass_models.train.jobs import COSINE, JOBS, LINEAR, DiffusionJob, _dit, _unet
from qpass_models.train.loop import Budget, train
from qpass_models.train.objective import flip, noise_error, shift
from qpass_models.train.state import Settings, State
from qpass_models.zoo import ZOO

from qpass.errors import ModelError
from qpass.progress import Progress

TINY = DiffusionJob(
    name="tiny", class_name="UNet2DModel", schedule=LINEAR, steps=6,
    architecture=_unet((8, 16), 1, 8, norm_num_groups=4),
)  # fmt: skip


@pytest.fixture
def pictures() -> Pictures:
    """64 images, each of one colour."""
    source = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (64, 3, 1, 1), generator=source, dtype=torch.uint8)
    return Pictures(images=colours.expand(64, 3, 32, 32).contiguous(), labels=torch.arange(64) % 10)


def fresh(job: DiffusionJob = TINY, rate: float = 1e-3) -> State:
    torch.manual_seed(0)
    network = job.build().eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    settings = Settings(batch=4, rate=rate, average=0.9)
    return State(network=network, average=Average(network, 0.9), optimizer=optimizer, settings=settings)


def run(state: State, pictures: Pictures, folder: Path, steps: int) -> State:
    return train(
        TINY, state, pictures, Budget(steps=steps), folder=folder, compiled=False, progress=Progress()
    )  # fmt: skip


def test_the_loss_is_the_weighted_noise_error() -> None:
    """Worked by hand: a = 0.5 has SNR 1, a = 0.9 has SNR 9, which gamma = 5 weighs by 5/9."""
    x0, noise = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    alphas, t = torch.tensor([0.5, 0.9]), torch.tensor([0, 1])
    seen = []

    def network(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append(x.flatten().tolist())
        return torch.zeros_like(x)

    assert noise_error(network, x0, t, noise, alphas, 0.0).item() == pytest.approx(1.0)
    assert noise_error(network, x0, t, noise, alphas, 5.0).item() == pytest.approx((1 + 5 / 9) / 2)
    assert seen[0] == pytest.approx([0.5**0.5, 0.1**0.5])


def test_images_are_shifted_whole() -> None:
    """Every shifted image is a window of the one with a reflected border, as numpy pads it."""
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6)
    moved = shift(images, torch.Generator().manual_seed(1), by=2).numpy()
    for image, result in zip(images.numpy(), moved, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        windows = [padded[:, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
        assert sum((window == result).all() for window in windows) == 1


def test_about_half_of_the_images_are_mirrored() -> None:
    """And each is either itself or its mirror image."""
    images = torch.rand(200, 3, 4, 4)
    flipped = flip(images, torch.Generator().manual_seed(0))
    mirrored = [bool((a == b.flip(-1)).all()) for a, b in zip(flipped, images, strict=True)]
    same = [bool((a == b).all()) for a, b in zip(flipped, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_the_average_follows_its_formula() -> None:
    """a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n))."""
    network = torch.nn.Linear(1, 1, bias=False)
    average = Average(network, 0.5)
    expected = network.weight.item()
    for step in range(20):
        with torch.no_grad():
            network.weight += 1
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.item()
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_a_resumed_training_is_the_unbroken_one(pictures: Pictures, tmp_path: Path) -> None:
    """Interrupted after three of six steps, and resumed from what was kept: the same weights, bit for bit."""
    whole = run(fresh(), pictures, tmp_path / "whole", 6)
    halfway = fresh()
    with pytest.raises(KeyboardInterrupt):
        train(
            TINY, halfway, pictures, Budget(steps=6), folder=tmp_path / "parts", compiled=False,
            progress=_Stop(3), keep_every=0.0,
        )  # fmt: skip
    resumed = run(fresh(), pictures, tmp_path / "parts", 6)
    assert resumed.step == 6
    for name, value in whole.average.tensors.items():
        assert torch.equal(value, resumed.average.tensors[name]), name


class _Stop(Progress):
    """Interrupts when the given step has been kept."""

    def __init__(self, step: int) -> None:
        self.step = step

    def say(self, line: str) -> None:
        if line.strip().startswith(f"step {self.step}:"):
            raise KeyboardInterrupt


def test_training_learns(pictures: Pictures, tmp_path: Path) -> None:
    """The loss on images of one colour falls to less than two thirds within 60 steps."""
    run(fresh(), pictures, tmp_path / "few", 4)
    run(fresh(rate=3e-3), pictures, tmp_path / "many", 60)

    def loss(folder: Path, rate: float) -> float:
        state = fresh(rate=rate)
        state.restore(folder / "state.pt", torch.device("cpu"))
        with torch.no_grad():
            return float(TINY.loss(state.network, pictures, 64, torch.Generator().manual_seed(5)))

    assert loss(tmp_path / "many", 3e-3) < loss(tmp_path / "few", 1e-3) * 2 / 3


@pytest.mark.parametrize("conditional", [False, True])
def test_what_is_exported_can_be_loaded(conditional: bool, pictures: Pictures, tmp_path: Path) -> None:
    """The folder is a model of the `diffusers` adapter, its weights the average in fp16."""
    job = TINY if not conditional else DiffusionJob(
        name="t", class_name="DiTTransformer2DModel", schedule=COSINE, steps=2, empty=10, architecture=_dit(1, 1, 8)
    )  # fmt: skip
    state = fresh(job)
    assert torch.isfinite(job.loss(state.network, pictures, 4, torch.Generator().manual_seed(0)))
    export(job, state, {"steps": 0}, tmp_path / "model")
    adapter = DiffusersModel(path=str(tmp_path / "model"))
    assert adapter.cannot_sample() is None
    kept = load_weights(tmp_path / "model")
    for name, value in adapter.load().state_dict().items():
        assert torch.equal(value, state.average.tensors[name].half().float()), name
        assert torch.equal(value, kept[name]), name
    assert json.loads((tmp_path / "model" / "card.json").read_text()) == {"steps": 0}


@pytest.mark.parametrize("name", ["cifar10-unet", "cifar10-dit"])
def test_the_jobs_make_the_models_that_ship(name: str) -> None:
    """Same tensors, same shapes, same noise schedule."""
    job = JOBS[name]
    assert isinstance(job, DiffusionJob)
    state = job.build().state_dict()
    assert {k: v.shape for k, v in load_weights(ZOO / name).items()} == {k: v.shape for k, v in state.items()}
    schedule = json.loads((ZOO / name / "scheduler_config.json").read_text())
    assert schedule["beta_schedule"] == job.schedule["beta_schedule"]


def test_the_sizes_for_benchmarks_are_those_of_the_papers() -> None:
    """DDPM's CIFAR-10 UNet has 35.7 M parameters (Ho et al., section B); DiT-S has 33 M (Peebles & Xie, table 1)."""
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in JOBS[name].build().parameters()) for name in JOBS}
    assert sizes["cifar10-ddpm"] == pytest.approx(35.7e6, rel=0.01)
    assert sizes["cifar10-dit-s"] == pytest.approx(33e6, rel=0.25)
    assert 2 * sizes["cifar10-unet"] < 24e6
    assert 2 * sizes["cifar10-dit"] < 24e6


def test_without_data_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a folder with something else in it is refused by name."""
    monkeypatch.delenv("QPASS_DATA", raising=False)
    with pytest.raises(ModelError, match="--data FOLDER, where torchvision keeps CIFAR-10"):
        read(None, "train")
    with pytest.raises(ModelError, match="holds no CIFAR-10"):
        read(tmp_path, "train")


def test_help_lists_every_option() -> None:
    """`--help` works without data."""
    shown = CliRunner().invoke(main, ["--help"])
    assert shown.exit_code == 0
    for option in (
        "--minutes",
        "--steps",
        "--init",
        "--data",
        "--out",
        "--seed",
        "--device",
        "--compile",
        "--debug",
    ):
        assert option in shown.output
