"""Tensors kept in a graph module under dotted names, next to the modules they belong to."""

from __future__ import annotations

import torch
from torch import nn

from qpass.graph.nodes import attribute


def put(gm: nn.Module, dotted: str, tensor: torch.Tensor) -> None:
    """Registers a buffer under a dotted name, in place of one there; plain containers appear on the way.

    >>> gm = nn.Module()
    >>> put(gm, "blocks.0.scale", torch.ones(1))
    >>> get(gm, "blocks.0.scale")
    tensor([1.])
    """
    owner = gm
    *path, leaf = dotted.split(".")
    for part in path:
        if part not in owner._modules:
            if hasattr(owner, part):
                raise ValueError(f"cannot put {dotted!r}: {part!r} on the way is not a module")
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if leaf not in owner._buffers and hasattr(owner, leaf):
        raise ValueError(f"cannot put {dotted!r}: the module has an attribute of that name that is no buffer")
    owner.register_buffer(leaf, tensor)


def get(gm: nn.Module, dotted: str) -> torch.Tensor:
    """The parameter or buffer of that name."""
    try:
        found = attribute(gm, dotted)
    except AttributeError as error:
        raise KeyError(f"no tensor named {dotted!r}") from error
    if not isinstance(found, torch.Tensor):
        raise KeyError(f"{dotted!r} is a {type(found).__name__}, not a tensor")
    return found


def drop(gm: nn.Module, dotted: str) -> None:
    """Removes a buffer, and the containers that are left empty by it."""
    get(gm, dotted)
    *path, leaf = dotted.split(".")
    owners = [gm]
    for part in path:
        owners.append(owners[-1].get_submodule(part))
    if leaf not in owners[-1]._buffers:
        raise KeyError(f"{dotted!r} is no buffer")
    del owners[-1]._buffers[leaf]
    for owner, part in zip(reversed(owners[:-1]), reversed(path), strict=True):
        child = owner.get_submodule(part)
        if type(child) is nn.Module and not (child._modules or child._buffers or child._parameters):
            del owner._modules[part]
