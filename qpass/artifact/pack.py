"""Codes of 2 to 8 bits as a dense stream of bytes, least significant bit first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 20  # codes at a time; a multiple of 8, so that every chunk ends on a whole byte


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 or uint8 codes as ceil(n * bits / 8) bytes; signed codes are stored with 2^(bits-1) added.

    >>> pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2)
    tensor([57], dtype=torch.uint8)
    """
    flat = codes.reshape(-1).cpu()
    if codes.dtype == torch.int8:
        flat = (flat.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    parts = []
    for start in range(0, len(flat), _CHUNK):
        chunk = flat[start : start + _CHUNK].numpy().reshape(-1, 1)
        parts.append(np.packbits(np.unpackbits(chunk, axis=1, count=bits, bitorder="little"), bitorder="little"))
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.uint8))


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    """The inverse of `pack`."""
    count = int(np.prod(shape, dtype=np.int64))
    if len(packed) != (count * bits + 7) // 8:
        raise ValueError(f"{count} codes of {bits} bits take {(count * bits + 7) // 8} bytes, not {len(packed)}")
    stream, step = packed.cpu().numpy(), _CHUNK * bits // 8
    parts = []
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        place = start // _CHUNK * step
        flags = np.unpackbits(stream[place : place + step], count=size * bits, bitorder="little")
        parts.append(np.packbits(flags.reshape(size, bits), axis=1, bitorder="little").reshape(-1))
    codes = torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.uint8))
    if signed:
        codes = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    return codes.reshape(shape)
