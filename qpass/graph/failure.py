"""Finds which module, and which line of whose code, stopped a trace."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from qpass.errors import TraceError

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)


def trace_error(error: BaseException, module: nn.Module) -> TraceError:
    """The error to raise from `error`: the innermost line outside torch, and the module that was running there."""
    names = {id(m): name for name, m in module.named_modules()}
    where, owner = "", ("", type(module).__name__)
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file.startswith(_OURS):
            continue
        running = _running(frame, names)
        if running is not None:
            owner = running
        if not file.startswith(_TORCH):
            where = f"{file}:{line}"
    name, kind = owner
    place = f" at {where}" if where else ""
    reason = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__).strip()
    return TraceError(f"cannot trace module '{name}' ({kind}){place}: {reason}")


def _running(frame: FrameType, names: dict[int, str]) -> tuple[str, str] | None:
    running = frame.f_locals.get("self")
    if isinstance(running, nn.Module) and id(running) in names:
        return names[id(running)], type(running).__name__
    return None
