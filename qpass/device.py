"""Where tensors live: a device by name, if this machine has it."""

from __future__ import annotations

import platform
from typing import Any

import torch

from qpass.errors import DeviceError


def select_device(name: str) -> torch.device:
    """The device of that name; a `DeviceError` where this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is not a name torch knows; write cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name!r}: this machine has no CUDA device that torch can use; try --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0 on"
        )
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r}: qpass runs on cpu and cuda")
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bf16; elsewhere these are slower than in fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def machine_of(device: torch.device) -> dict[str, Any]:
    """What times depend on besides the model."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"host": platform.node(), "device": name, "threads": torch.get_num_threads()}
