"""What an artifact takes on disk: what its codes and floats take by hand, and half of that where fp16 will do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.simulate import round_weight
from safetensors.torch import load_file
from torch.fx import GraphModule

from qpass.artifact import Artifact, load_artifact, save
from qpass.graph import trace
from qpass.kernels import reference
from qpass.plugins import Catalog
from qpass.slots import slots, write_params
from qpass.spec import NodeSpec, parse_spec


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_size_on_disk(known: Catalog, tmp_path: Path, bits: int) -> None:
    """A model takes what its codes, scales, zero points and floats take by hand, within two per cent."""
    # one convolution of 256 x 256 x 3 x 3 and one linear of 512 x 512, behind an 8-bit first layer
    graph, predicted = big(bits)
    save(Artifact(graph=graph), tmp_path / "a", known)
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert size == pytest.approx(predicted, rel=0.02)


def big(bits: int) -> tuple[GraphModule, float]:
    class Big(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(256, 256, 3, padding=1)
            self.linear = torch.nn.Linear(512, 512, bias=False)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(x).reshape(x.shape[0], -1, 512)).reshape(x.shape) + t.reshape(-1, 1, 1, 1)

    torch.manual_seed(0)
    graph = trace(Big(), (torch.randn(2, 256, 4, 4), torch.ones(2)))
    for node in graph.graph.nodes:
        if node.op == "call_module":
            spec = parse_spec(f"int{bits} channel", symmetric=True)
            node.meta["qpass"] = NodeSpec(weight=spec, execution="simulated")
    for slot in slots(graph):
        weight = graph.get_parameter(slot.home.removesuffix("_q"))
        values = reference.arrange(weight, slot.layout, "channel", 0)
        write_params(
            graph, slot, AbsMax().fit(lambda v=values: [(v, torch.zeros(1, dtype=torch.long))], slot.spec)
        )
        round_weight(graph, slot)
    codes = (256 * 256 * 9 + 512 * 512) * bits / 8
    floats = 4 * (2 * (256 + 512) + 256)  # a scale and a zero point for each channel, and one bias
    return graph, codes + floats


def test_fp32_that_fits_in_fp16_takes_half_the_bytes(tmp_path: Path, catalog: Catalog) -> None:
    """Values that fp16 holds exactly are stored in it and come back in fp32; all others stay as they are."""
    exact, other = torch.tensor([0.5, -2.0, 65504.0]), torch.tensor([0.1, 1e-9, 70000.0])
    root = torch.nn.Module()
    for name, tensor in (("exact", exact), ("other", other), ("true_half", exact.half())):
        root.register_buffer(name, tensor)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for name in ("exact", "other", "true_half"):
        x = graph.call_function(torch.ops.aten.add.Tensor, (x, graph.get_attr(name)))
    graph.output(x)
    save(Artifact(graph=torch.fx.GraphModule(root, graph)), tmp_path / "a", catalog)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert {name: t.dtype for name, t in stored.items()} == {
        "exact": torch.float16,
        "other": torch.float32,
        "true_half": torch.float16,
    }
    back = load_artifact(tmp_path / "a", catalog).graph
    assert torch.equal(back.exact, exact)
    assert torch.equal(back.other, other)
    assert back.true_half.dtype == torch.float16
