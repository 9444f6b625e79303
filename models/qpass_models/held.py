"""Modules that someone else holds: read where they lie, never moved, never changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qpass.errors import ModelError

OF_PEFT = ("_active_adapter", "_disable_adapters")  # which of a layer's adapters speak


def on(module: Any, device: torch.device) -> Any:
    """The module, or a copy of it on that device where it lies elsewhere, made without a second one over there."""
    held = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in held):
        raise ModelError(
            f"the weights of this {type(module).__name__} are not in memory but on the meta device, where offloading "
            "leaves them; give the model as it was before"
        )
    if all(tensor.device == device for tensor in held):
        return module
    moved: dict[int, Any] = {}
    for tensor in held:
        copied = tensor.detach().to(device, copy=True)
        moved[id(tensor)] = (
            nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
        )
    return copy.deepcopy(module, moved)


def contents(part: Any) -> Iterator[bytes]:
    """What a part of a pipeline computes with, as bytes: its configuration and weights, or a tokenizer's words."""
    yield type(part).__name__.encode()
    if config := getattr(part, "config", None):
        table = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # with the name it was loaded by, and the version that wrote it, the same weights would be others
        said = {key: value for key, value in table.items() if not key.startswith(("_", "transformers_version"))}
        yield json.dumps(said, sort_keys=True, default=str).encode()
    if isinstance(part, nn.Module):
        yield from _behaviour(part)
        for name, tensor in sorted(part.state_dict().items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif hasattr(part, "get_vocab"):
        yield json.dumps([part.get_vocab(), part.model_max_length], sort_keys=True).encode()


def _behaviour(module: nn.Module) -> Iterator[bytes]:
    """What is set on modules beside their weights: FreeU's factors, adapters' scales, other attention, hooks."""
    for name, inner in module.named_modules():
        plain = {
            key: value
            for key, value in vars(inner).items()
            if (key in OF_PEFT or not key.startswith("_"))
            and key != "training"
            and "path" not in key
            and _is_plain(value)
        }
        processor = type(getattr(inner, "processor", None)).__name__
        hooks = len(inner._forward_hooks) + len(inner._forward_pre_hooks)
        own = "forward" in vars(inner)
        said = [name, type(inner).__qualname__, plain, processor, hooks, own]
        yield json.dumps(said, sort_keys=True, default=str).encode()


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
