"""A graph makes its constants where its input is; what does not is found without that device."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn

import qpass.graph as graph
from qpass.errors import PreconditionError

aten = torch.ops.aten


@pytest.mark.parametrize("split", [False, True], ids=["fused", "split"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_graph_may_move(zoo, name, split):
    """No graph mixes devices when run on fake CUDA tensors, and the check leaves its own tensors alone."""
    model, traced = zoo(name)
    gm = copy.deepcopy(traced)
    if split:
        graph.split_attention(gm)
    before = {n: (t.data_ptr(), t.device.type) for n, t in gm.state_dict().items()}
    graph.check_devices(gm, model.example(2))
    assert {n: (t.data_ptr(), t.device.type) for n, t in gm.state_dict().items()} == before


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + t[:, None]


def small() -> tuple[graph.trace, tuple[torch.Tensor, ...]]:
    example = (torch.ones(2, 4), torch.ones(2))
    return graph.trace(Small(), example), example


def plant(gm, make):
    """Adds a constant to the layer's output, under the origins `planted` and `mixing`."""
    layer = next(iter(gm.graph.find_nodes(op="call_module")))
    with gm.graph.inserting_after(layer):
        constant = make(gm.graph)
        with gm.graph.inserting_after(constant):
            added = gm.graph.call_function(aten.add.Tensor, (layer, constant))
    constant.meta["origin"], added.meta["origin"] = "planted", "mixing"
    layer.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
    gm.recompile()


def test_a_constant_made_on_the_cpu_is_found():
    """A device baked into a node is found, by the origin of the node where it meets the input."""
    gm, example = small()
    plant(gm, lambda g: g.call_function(aten.arange.default, (4,), {"device": torch.device("cpu")}))
    with pytest.raises(PreconditionError, match=r"'mixing' mixes devices.*'planted' is on cpu"):
        graph.check_devices(gm, example)
    graph.check_devices(gm, example, device="cpu")


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")  # planting one is the point
def test_a_tensor_that_is_no_buffer_is_found():
    """A plain tensor attribute stays behind when the graph moves; as a buffer it would not."""
    gm, example = small()
    gm.constant = torch.ones(4)
    plant(gm, lambda g: g.get_attr("constant"))
    with pytest.raises(PreconditionError, match=r"'mixing' mixes devices"):
        graph.check_devices(gm, example)
    del gm.constant
    gm.register_buffer("constant", torch.ones(4))
    graph.check_devices(gm, example)


def test_another_error_keeps_its_kind_and_gains_the_origin():
    """A graph that is wrong for another reason says where, and is not called a mix of devices."""
    gm, example = small()
    plant(gm, lambda g: g.call_function(aten.ones.default, ([7],), {}))
    with pytest.raises(RuntimeError) as caught:
        graph.check_devices(gm, example, device="cpu")
    assert not isinstance(caught.value, PreconditionError)
    assert any("'mixing'" in note for note in caught.value.__notes__)


@pytest.mark.cuda
@torch.no_grad()
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_moved_graph_is_right(zoo, name):
    """Traced on the CPU and moved to CUDA, the graph equals the moved model."""
    model, gm = zoo(name)
    inputs = tuple(v.cuda() for v in model.example(3))
    wanted = (model.call or nn.Module.__call__)(copy.deepcopy(model.module).cuda(), *inputs)
    torch.testing.assert_close(copy.deepcopy(gm).cuda()(*inputs), wanted, rtol=1e-4, atol=1e-4)
