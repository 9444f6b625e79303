"""How far memory in use rises during a call."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from qpass.progress import peak_memory_mb

STATM = Path("/proc/self/statm")  # Linux: sizes of this process in pages, the second is what is resident
EVERY = 0.0005  # seconds between looks


def peak_rise(call: Callable[[], object], device: torch.device) -> int:
    """Bytes by which the peak during the call exceeds what was in use before it.

    On CUDA what PyTorch allocated, exactly. Elsewhere the process's resident memory, looked at every half
    millisecond: resetting the kernel's own high-water mark would falsify the peak that a run reports.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not STATM.exists():
        before = int(peak_memory_mb() * 2**20)
        call()
        return int(peak_memory_mb() * 2**20) - before
    return_freed_memory()
    return _resident_rise(call)


def _resident_rise(call: Callable[[], object]) -> int:
    done = threading.Event()
    before = peak = resident()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(peak, resident()) - before


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """Give the system what the C allocator keeps for later, or a warm call would seem to need nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others need not
    if trim is not None:
        trim(0)
