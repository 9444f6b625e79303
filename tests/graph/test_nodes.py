"""What depends on which input."""

from __future__ import annotations

import torch
from torch import nn

import qpass.graph as graph


def origins(nodes: set[torch.fx.Node]) -> set[str]:
    return {node.meta["origin"] for node in nodes}


def test_the_time_embedding_depends_on_t_alone(zoo):
    """Nodes downstream of t and not of x are the time embedding; sizes read off x do not count."""
    _, gm = zoo("dit")
    alone = origins(graph.depends_on(gm, 1) - graph.depends_on(gm, 0) - graph.depends_on(gm, 2))
    assert "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2" in alone
    assert not any("ff" in origin or "attn" in origin for origin in alone)
    assert "transformer_blocks.1.ff.net.2" in origins(graph.depends_on(gm, 1))
    assert "pos_embed.proj" not in origins(graph.depends_on(gm, 1))


class Sized(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (t[:, None] * torch.ones(x.shape[0], x.shape[1] * 2 + 1)).sum(1)


def test_a_size_is_not_a_value():
    """Only the shape of x is read: nothing depends on it, and the sizes are no compute of a block."""
    gm = graph.trace(Sized(), (torch.ones(2, 3), torch.ones(2)), dynamic=((0, 1), (0,)))
    assert graph.depends_on(gm, 0) == set()
    assert "/sum[0]" in origins(graph.depends_on(gm, 1))
    (block,) = graph.blocks(gm)
    assert not graph.sizes(gm.graph) & set(block.nodes)
    assert torch.equal(gm(torch.ones(4, 5), torch.ones(4)), torch.full((4,), 11.0))
