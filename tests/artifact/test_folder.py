"""An artifact's folder: what comes back is what was put in, to the bit, without the original weights."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from qpass_models.diffusers_model import DiffusersModel
from safetensors.torch import load_file, save_file
from torch.fx import GraphModule

from qpass.artifact import Artifact, load_artifact, save
from qpass.graph import blocks, check_devices, trace
from qpass.plugins import Catalog
from qpass.quantizer import dequantize
from qpass.schedule import Step, StepPlan
from qpass.slots import read_params, slots

Quantize = Callable[..., Any]

CASES = [
    ("unet", "int8 channel", "int8 tensor", "float32"),
    ("dit", "int8 channel", "int8 tensor", "float32"),
    ("ldm", "int8 channel", "int8 tensor", "float32"),
    ("unet", "int4 group:16", "int8 tensor time:4", "float32"),
    ("dit", "int5 group:16 asym", "int6 group:8 time:3", "float32"),
    ("dit", "nf4 channel", "fp8-e4m3 tensor", "float32"),
    ("unet", "fp8-e5m2 tensor", "log2:4 tensor sym", "float32"),
    ("ldm", "int3 channel asym", "log2:5 tensor sym", "float32"),
    ("dit", "int2 channel", "int8 token dynamic", "float32"),
    ("dit", "int7 channel", "int8 channel sym", "float32"),
    ("unet", "int8 channel", "float", "float32"),
    ("dit", "float", "int8 tensor", "float32"),
    ("unet", "int8 channel", "int8 tensor time:2", "bfloat16"),
    ("dit", "int4 group:16", "int8 tensor", "bfloat16"),
]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def described(graph: GraphModule) -> list[tuple[Any, ...]]:
    """Everything passes read off the nodes of a graph."""
    return [
        (
            n.op,
            str(n.target),
            n.meta.get("origin", ""),
            tuple(map(tuple, n.meta.get("stack", ()))),
            n.meta.get("qpass"),
        )
        for n in graph.graph.nodes
    ]


def run(graph: GraphModule, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = graph(*inputs)
    return output


@pytest.mark.parametrize(("model", "weight", "given", "dtype"), CASES)
def test_round_trip(
    quantize: Quantize, known: Catalog, tmp_path: Path, model: str, weight: str, given: str, dtype: str
) -> None:
    """The loaded graph computes the same bits, at another batch and image size; names and specs are the same."""
    case = quantize(model, weight, given, dtype)
    save(case.artifact, tmp_path / "a", known)
    loaded = load_artifact(tmp_path / "a", known)
    inputs = case.example(3, seed=3) if model == "dit" else case.example(3, seed=3, size=(16, 12))
    assert torch.equal(run(loaded.graph, inputs), case.output(inputs))
    assert described(loaded.graph) == described(case.artifact.graph)
    assert [(b.name, b.kind, len(b.nodes), len(b.inputs), len(b.outputs)) for b in blocks(loaded.graph)] == [
        (b.name, b.kind, len(b.nodes), len(b.inputs), len(b.outputs)) for b in blocks(case.artifact.graph)
    ]
    assert loaded.about == {**case.artifact.about, **loaded.about}
    save(case.artifact, tmp_path / "b", known)
    save(loaded, tmp_path / "c", known)
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


@pytest.mark.parametrize(("model", "weight", "given", "dtype"), CASES)
def test_no_device_is_baked_in(
    quantize: Quantize, known: Catalog, tmp_path: Path, model: str, weight: str, given: str, dtype: str
) -> None:
    """With everything moved to a GPU no node mixes devices, neither as the passes left it nor as loaded."""
    case = quantize(model, weight, given, dtype)
    save(case.artifact, tmp_path / "a", known)
    check_devices(case.artifact.graph, case.example(2), "cuda")
    check_devices(load_artifact(tmp_path / "a", known).graph, case.example(2), "cuda")


def test_codes_in_the_file_are_the_model(quantize: Quantize, known: Catalog, tmp_path: Path) -> None:
    """Every loaded weight is what its codes and scales stand for, and no weight is stored beside its codes."""
    case = quantize("unet", "int4 group:16", "int8 tensor time:4")
    save(case.artifact, tmp_path / "a", known)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    graph = load_artifact(tmp_path / "a", known).graph
    weights = [slot for slot in slots(graph) if slot.index < 0]
    assert len(weights) > 20
    for slot in weights:
        params = read_params(graph, slot)
        assert params is not None
        codes = graph.get_buffer(f"{slot.home}.codes")
        value = dequantize(codes, slot.spec, params.tensors, slot.layout)
        name = slot.home.removesuffix("_q")
        assert torch.equal(graph.get_parameter(name), value)
        assert name not in stored
        assert stored[f"{slot.home}.codes"].numel() == (codes.numel() * slot.spec.widest + 7) // 8


def test_a_fresh_process_needs_no_original(quantize: Quantize, known: Catalog, tmp_path: Path) -> None:
    """Another process, with the original's folder gone, loads every case and computes the same bits."""
    answers = {}
    for number, row in enumerate(CASES):
        case = quantize(*row)
        copy = tmp_path / "model"  # its own copy is deleted, others still need theirs
        shutil.copytree(case.adapter.path, copy)
        adapter = DiffusersModel(path=str(copy), dtype=row[3])  # type: ignore[arg-type]
        artifact = attrs.evolve(case.artifact, about={"config": dict(adapter.config())})
        save(artifact, tmp_path / "artifacts" / f"{number}", known)
        shutil.rmtree(copy)
        inputs = case.example(3, seed=7)
        answers |= {f"{number}.{place}": value for place, value in enumerate(inputs)}
        answers[f"{number}.output"] = case.output(inputs)
    save_file(answers, tmp_path / "answers.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(number) for number in range(len(CASES))]


FRESH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
import qpass
torch.set_num_threads(1)
root = Path(sys.argv[1])
answers = load_file(root / "answers.safetensors")
for number in range(len(list((root / "artifacts").iterdir()))):
    model = qpass.load(root / "artifacts" / str(number))
    inputs = [answers[f"{number}.{place}"] for place in range(10) if f"{number}.{place}" in answers]
    with torch.no_grad():
        output = model(*inputs)
    assert torch.equal(output, answers[f"{number}.output"]), number
    print(number)
assert "diffusers" not in sys.modules, "loading must not need diffusers"
"""


def test_weights_that_are_not_rounded_yet_stay(quantize: Quantize, known: Catalog, tmp_path: Path) -> None:
    """A graph between two passes may hold codes already; its weights are still what the next pass learns from."""
    graph = copy.deepcopy(quantize("unet").artifact.graph)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.copy_(torch.randn_like(parameter))
    for node in graph.graph.nodes:
        if "qpass" in node.meta:
            node.meta["qpass"] = attrs.evolve(node.meta["qpass"], execution="float")
    save(Artifact(graph=graph), tmp_path / "a", known)
    loaded = load_artifact(tmp_path / "a", known).graph
    for name, tensor in graph.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@torch.no_grad()
def test_a_layer_comes_back_with_what_it_holds(known: Catalog, tmp_path: Path) -> None:
    """A linear layer with a buffer and a layer of its own, as LoRA has: both are stored and read where they were."""

    class Holding(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.register_buffer("gain", torch.randn(8))
            self.extra = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.gain + self.extra(x)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Holding()

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + t[:, None]

    model, inputs = Model(), (torch.randn(3, 8), torch.ones(3))
    save(Artifact(graph=trace(model, inputs)), tmp_path / "a", known)
    assert torch.equal(load_artifact(tmp_path / "a", known).graph(*inputs), model(*inputs))


class Products(torch.nn.Module):
    """Products that are no lifted layers: one that grows, and one whose weight each call computes."""

    def __init__(self) -> None:
        super().__init__()
        self.grown = torch.nn.ConvTranspose2d(4, 3, 4, 2, 1)
        self.normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 5))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.normed(self.grown(x))
        return made * t[:, None, None, None]


def test_products_that_are_no_layers_are_kept(known: Catalog, tmp_path: Path) -> None:
    """Models that hold such parts are saved with them, as they are."""
    torch.manual_seed(0)
    model, inputs = Products(), (torch.randn(2, 4, 3, 3), torch.ones(2))
    save(Artifact(graph=trace(model, inputs)), tmp_path / "a", known)
    assert torch.equal(load_artifact(tmp_path / "a", known).graph(*inputs), model(*inputs))


def test_what_travels_with_the_graph(quantize: Quantize, known: Catalog, tmp_path: Path) -> None:
    """The step plan and what the artifact says of itself come back as they were."""
    plan = StepPlan(steps=(Step(t=999.0, t_prev=499.5, program="short"), Step(t=499.5, t_prev=-1, correction="c")))
    about = {"recipe": {"seed": 3, "name": "é 😀"}, "config": {"sizes": [1, 2.5, None, True]}}
    artifact = attrs.evolve(quantize("unet").artifact, plan=plan, about=about)
    save(artifact, tmp_path / "a", known)
    loaded = load_artifact(tmp_path / "a", known)
    assert loaded.plan == plan
    assert loaded.about == about


def test_saving_replaces_what_was_there(quantize: Quantize, known: Catalog, tmp_path: Path) -> None:
    """An artifact saved over another leaves no file of the other, and nothing half-written."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.bin").write_bytes(b"x")
    save(quantize("unet").artifact, tmp_path / "a", known)
    assert sorted(files(tmp_path / "a")) == ["model.safetensors", "qpass.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_others_may_read_it(tmp_path: Path, catalog: Catalog) -> None:
    """Both files of an artifact, and its folder, are readable by everyone, whoever made it."""
    graph = torch.fx.Graph()
    graph.output(graph.placeholder("x"))
    save(Artifact(graph=torch.fx.GraphModule(torch.nn.Module(), graph)), tmp_path / "a", catalog)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()} == {0o644}
