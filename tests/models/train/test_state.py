"""What a training is resumed from: its settings, and files that are not its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from click.testing import CliRunner
from qpass_models.train.__main__ import main
from qpass_models.train.average import Average
from qpass_models.train.state import Settings, State
from safetensors.torch import save_file
from torch import nn

from qpass.errors import ModelError

CPU = torch.device("cpu")
BEGUN = Settings(seed=0, batch=4, rate=1e-3, average=0.9, init="shipped")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def fresh(network: nn.Module | None = None, settings: Settings = BEGUN) -> State:
    network = network or nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate)
    return State(network=network, average=Average(network, 0.9), optimizer=optimizer, settings=settings)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The file of a training in its fifth step."""
    state = fresh()
    state.step, state.seconds, state.loss = 5, 1.0, 0.5
    (tmp_path / "state.pt").write_bytes(state.dump())
    return tmp_path / "state.pt"


@pytest.mark.parametrize(
    ("change", "was", "now"),
    [
        ({"seed": 3}, "--seed 0", "--seed 3"),
        ({"batch": 8}, "--batch 4", "--batch 8"),
        ({"rate": 0.1}, "--rate 0.001", "--rate 0.1"),
        ({"average": 0.5}, "--average 0.9", "--average 0.5"),
        ({"init": None}, "--init shipped", "no --init"),
        ({"seed": 1, "init": "else"}, "--seed 0, --init shipped", "--seed 1, --init else"),
    ],
)
def test_other_settings_are_refused(change: dict[str, object], was: str, now: str, kept: Path) -> None:
    """Both values and the way out; nothing is restored, so nothing untrue can be stated of it."""
    state = fresh(settings=attrs.evolve(BEGUN, **change))
    with pytest.raises(ModelError) as error:
        state.restore(kept, CPU)
    assert f"was begun with {was}, and this command says {now}; say the former to go on with it" in str(
        error.value
    )
    assert "or choose another --out" in str(error.value)
    assert state.step == 0


def test_the_same_settings_go_on(kept: Path) -> None:
    """With the weights, their average and the step."""
    state, first = fresh(), fresh()
    state.restore(kept, CPU)
    assert (state.step, state.seconds, state.loss) == (5, 1.0, 0.5)
    assert not torch.equal(state.network.weight, first.network.weight)
    assert torch.equal(state.average.tensors["weight"], state.network.weight)


def test_a_file_without_settings_goes_on(kept: Path) -> None:
    """As they were written before settings were kept; they cannot be checked."""
    torch.save({key: value for key, value in torch.load(kept).items() if key != "settings"}, kept)
    state = fresh(settings=attrs.evolve(BEGUN, seed=7))
    state.restore(kept, CPU)
    assert state.step == 5


@pytest.mark.parametrize("content", [b"", b"some text", b"\x80\x02garbage", 1000])
def test_damaged_files_are_named(content: bytes | int, kept: Path) -> None:
    """Empty, something else, or the first thousand bytes: torch fails on each in its own way; we say one sentence."""
    kept.write_bytes(kept.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(ModelError) as error:
        fresh().restore(kept, CPU)
    said = str(error.value)
    assert said.startswith(f"{str(kept)!r} is cut short, or no state of a training (")
    assert said.endswith("); delete it to start anew, or choose another --out")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([1, 2], "is no state of a training: it holds a list; delete it"),
        ({"network": {}}, "is no state of a training: it lacks 'average'; delete it"),
    ],
)
def test_something_else_in_the_file(stored: object, message: str, kept: Path) -> None:
    """A file of torch that is no training's."""
    torch.save(stored, kept)
    with pytest.raises(ModelError, match=message):
        fresh().restore(kept, CPU)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(2, 4), r"its 'weight' has the shape \(3, 2\), not \(4, 2\)"),
        (nn.Linear(2, 3, bias=False), "it holds 'bias', which the model has not"),
        (nn.Sequential(nn.Linear(2, 3)), "it lacks '0.weight'"),
    ],
)
def test_another_network_is_refused(network: nn.Module, message: str, kept: Path) -> None:
    """With the first tensor that differs."""
    with pytest.raises(ModelError, match=f"does not belong to this training: {message}; delete it"):
        fresh(network).restore(kept, CPU)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: None, f"no {WEIGHTS} in '.*'; give a folder that a training of 'cifar10-unet' wrote"),
        (lambda file: save_file({"a": torch.ones(1)}, file), "holds is no 'cifar10-unet': it lacks '.*'; give a"),
        (lambda file: file.write_bytes(b"cut"), "cannot be read: .*; fetch or train it again"),
    ],
)
def test_init_of_something_else(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    """Said before any data is read."""
    write(tmp_path / WEIGHTS)
    result = CliRunner().invoke(main, ["cifar10-unet", "--init", str(tmp_path), "--data", str(tmp_path / "none")])
    assert isinstance(result.exception, ModelError)
    assert result.exception.args[0].startswith(("--init: ", repr(str(tmp_path / WEIGHTS))))
    with pytest.raises(ModelError, match=message):
        raise result.exception


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_shows_tracebacks_on_demand(debug: bool, tmp_path: Path) -> None:
    """`--debug`, which its own hint names; a mistake is told as one either way."""
    done = subprocess.run(
        [sys.executable, "-m", "qpass_models.train", "cifar10-unet", "--init", tmp_path] + ["--debug"] * debug,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: --init: no " in done.stderr
    assert ("Traceback" in done.stderr) is debug
