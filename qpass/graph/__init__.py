"""The traced model: a plain `torch.fx.GraphModule` whose nodes have stable names, and cuts through it."""

from qpass.graph.attention import split_attention
from qpass.graph.blocks import Block, block_module, block_of, blocks, blocks_ending_at
from qpass.graph.devices import check_devices
from qpass.graph.nodes import depends_on, is_compute, sizes
from qpass.graph.trace import trace

__all__ = [
    "Block",
    "block_module",
    "block_of",
    "blocks",
    "blocks_ending_at",
    "check_devices",
    "depends_on",
    "is_compute",
    "sizes",
    "split_attention",
    "trace",
]
