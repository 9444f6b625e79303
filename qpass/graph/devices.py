"""Runs a graph with fake tensors on a device that need not exist, to find a node that mixes two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from qpass.errors import PreconditionError
from qpass.graph.nodes import attribute, is_compute


def check_devices(gm: GraphModule, example: Sequence[torch.Tensor], device: str = "cuda") -> None:
    """Raises a PreconditionError that names the node where tensors of two devices meet; needs no such device.

    Parameters and buffers are taken as moved by `gm.to(device)`, a plain tensor attribute as left behind.
    """
    with FakeTensorMode() as mode:
        moved = {name: _fake(t, device) for name, t in _state(gm).items()}
        _Devices(gm, mode, moved).run(*(_fake(value, device) for value in example))


class _Devices(Interpreter):
    def __init__(self, gm: GraphModule, mode: FakeTensorMode, moved: dict[str, torch.Tensor]) -> None:
        super().__init__(gm, garbage_collect_values=True)
        self._mode, self._moved = mode, moved

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr":
            name = str(n.target)
            return self._moved[name] if name in self._moved else _stay(attribute(self.module, name))
        if not is_compute(n):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        origin = n.meta.get("origin", n.name)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        met = {t.device.type for t in tensors if t.ndim}
        if len(met) > 1:
            raise PreconditionError(
                f"'{origin}' mixes devices: {self._where(n)}. A constant of the graph must be a buffer, "
                "or made on the device of an input (qpass.graph.ops.device_of)"
            )
        try:
            if n.op == "call_module":
                name = str(n.target)
                state = {k: self._moved[f"{name}.{k}"] for k in _state(self.module.get_submodule(name))}
                return torch.func.functional_call(self.module.get_submodule(name), state, args, kwargs)
            return getattr(self, n.op)(n.target, args, kwargs)
        except RuntimeError as error:
            if "device" not in str(error):
                error.add_note(f"while checking the devices at '{origin}'")
                raise
            raise PreconditionError(f"'{origin}' mixes devices: {self._where(n)} ({error})") from error

    def _where(self, node: Node) -> str:
        return ", ".join(
            f"'{source.meta.get('origin', source.target)}' is on {self.env[source].device.type}"
            for source in node.all_input_nodes
            if isinstance(self.env[source], torch.Tensor)
        )


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _fake(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _stay(value: Any) -> Any:
    return (
        _fake(value, value.device)
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        else value
    )
