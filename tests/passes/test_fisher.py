"""Fisher weights are the diagonal of the Gauss-Newton matrix, as autograd's Jacobian has it."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.brecq import Brecq
from qpass_passes.fitting import fit_weights
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import Reconstruction
from qpass_passes.reconstruction.fisher import fisher
from qpass_passes.reconstruction.objective import distance
from qpass_passes.row_places import Places
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from qpass.activations import Samples
from qpass.graph import trace

CPU = torch.device("cpu")


class Net(nn.Module):
    """x goes through two layers, t through none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) * (1 + t[:, None]))

    def after(self, z: Tensor, t: Tensor) -> Tensor:
        return self.b(torch.tanh(z) * (1 + t))


def by_jacobian(net: Net, x: Tensor, t: Tensor) -> Tensor:
    """The mean over rows of the diagonal of J^T J at the first layer's output, of mean 1."""
    rows = [
        jacobian(lambda z, t=t: net.after(z, t), net.a(one)).pow(2).sum(0) for one, t in zip(x, t, strict=True)
    ]
    total = torch.stack(rows).mean(0)
    return total / total.mean()


@pytest.mark.parametrize(("width", "tolerance"), [(1, 1e-5), (3, 0.1)])
def test_they_are_the_diagonal(width, tolerance):
    """Exactly where the output is one value, as a sign squared is 1; on average over signs where it is more."""
    torch.manual_seed(0)
    net = Net(width)
    x, t = torch.randn(2000, 4), torch.rand(2000)
    graph = trace(net, (x[:2], t[:2]))
    node = next(node for node in graph.graph.nodes if node.target == "a")
    found = fisher(graph, [node], Samples(inputs=(x, t)), rows=2000, seed=0, device=CPU, places={node: Places()})[
        node
    ]
    assert found.shape == (1, 6)
    assert found.mean() == pytest.approx(1)
    expected = by_jacobian(net, x, t).detach()
    assert expected.max() > 1.3 * expected.min()
    assert torch.allclose(found[0], expected, rtol=tolerance)


def test_equal_seeds_equal_weights():
    """And other signs other weights; every chosen row counts once."""
    torch.manual_seed(0)
    x, t = torch.randn(10, 4), torch.rand(10)
    graph = trace(Net(3), (x[:2], t[:2]))
    node = next(node for node in graph.graph.nodes if node.target == "a")
    places = {node: Places()}
    made = [
        fisher(graph, [node], Samples(inputs=(x, t)), rows=6, seed=seed, device=CPU, places=places)[node]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_loss_is_weighted():
    """Element by element, before the sum over channels; with weights of 1 it is the plain loss."""
    ours, theirs = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.zeros(2, 2)
    assert distance(ours, theirs, 2.0, torch.tensor([[1.0, 0.5]])) == (1 + 2 + 9 + 12.5) / 2
    assert distance(ours, theirs, 2.0, torch.ones(1, 2)) == distance(ours, theirs, 2.0)


@pytest.mark.parametrize(
    ("shape", "channels"), [((2, 3), 3), ((2, 7, 3), 3), ((2, 3, 4, 5), 3), ((2, 3, 4, 5, 6), 3)], ids=str
)
def test_the_loss_sums_over_channels(shape, channels):
    """Wherever they are: an error of 1 everywhere counts once for each, in tokens, images and videos."""
    assert distance(torch.ones(shape), torch.zeros(shape), 2.0) == channels


def test_brecq_learns_by_them(context):
    """From the same draws, the blocks of a UNet learn other codes, to a smaller weighted error."""
    codes = {}
    for how in ("none", "mean"):
        graph = Assign(weight="int4 channel").run(copy.deepcopy(context.reference), context).graph
        fit_weights(graph, Mse(), context)
        objective = Brecq(iterations=30, batch=8, rate=1e-2, fisher=how).objective()
        samples = context.get(context.calibration, graph)
        folder = context.scratch / how
        made = Reconstruction(
            graph=graph,
            samples=samples,
            objective=objective,
            ctx=attrs.evolve(context, scratch=folder),
            key="same",
        )
        traces = made.run()
        assert sum(one.after for one in traces) < sum(one.before for one in traces)
        codes[how] = {name: tensor for name, tensor in graph.named_buffers() if name.endswith(".codes")}
    assert len(codes["none"]) > 10
    assert codes["none"].keys() == codes["mean"].keys()
    assert any(not torch.equal(codes["none"][name], codes["mean"][name]) for name in codes["none"])
