"""Bit packing, against a plain reference that writes one bit after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.artifact import pack as packing
from qpass.artifact.pack import pack, unpack


def reference(codes: list[int], bits: int, signed: bool) -> list[int]:
    """Least significant bit first, no gaps; the last byte is filled up with zeros."""
    stream = 0
    for place, code in enumerate(codes):
        stream |= (code + (2 ** (bits - 1) if signed else 0)) << (place * bits)
    return list(stream.to_bytes((len(codes) * bits + 7) // 8, "little"))


def span(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def tensor(codes: list[int], signed: bool) -> torch.Tensor:
    return torch.tensor(codes, dtype=torch.int8 if signed else torch.uint8)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.data(), st.integers(2, 8), st.booleans())
def test_the_stream_is_the_codes_bit_by_bit(data: st.DataObject, bits: int, signed: bool) -> None:
    """Any codes of 2 to 8 bits, of any count, make the bytes of the reference, and come back from them."""
    low, high = span(bits, signed)
    codes = data.draw(st.lists(st.integers(low, high), max_size=40))
    packed = pack(tensor(codes, signed), bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == reference(codes, bits, signed)
    assert unpack(packed, bits, (len(codes),), signed).tolist() == codes


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_survives_in_any_shape(bits: int, signed: bool) -> None:
    """Every code of a width comes back with its dtype and shape, also from a tensor that is not contiguous."""
    low, high = span(bits, signed)
    codes = tensor(list(range(low, high + 1)), signed).reshape(2, -1).t()
    packed = pack(codes, bits)
    assert len(packed) == (2**bits * bits + 7) // 8
    back = unpack(packed, bits, tuple(codes.shape), signed)
    assert back.dtype == codes.dtype
    assert torch.equal(back, codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Packing in chunks of 16 codes gives the same bytes as the reference at every count around the seams."""
    monkeypatch.setattr(packing, "_CHUNK", 16)
    generator = torch.Generator().manual_seed(bits)
    for count in (1, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49):
        codes = torch.randint(0, 2**bits, (count,), generator=generator, dtype=torch.uint8)
        packed = pack(codes, bits)
        assert packed.tolist() == reference(codes.tolist(), bits, False)
        assert torch.equal(unpack(packed, bits, (count,), False), codes)


@pytest.mark.parametrize("count", [(1 << 20) - 1, 1 << 20, (1 << 20) + 3])
def test_the_real_chunk_leaves_no_seam(count: int) -> None:
    """Around the real chunk's end, 3-bit codes come back as they were."""
    codes = torch.randint(-4, 4, (count,), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = pack(codes, 3)
    assert len(packed) == (count * 3 + 7) // 8
    assert torch.equal(unpack(packed, 3, (count,), True), codes)


def test_no_codes_take_no_bytes() -> None:
    """Packing nothing gives nothing, and nothing comes back in its shape."""
    assert pack(torch.zeros(0, 3, dtype=torch.int8), 4).shape == (0,)
    assert unpack(torch.zeros(0, dtype=torch.uint8), 4, (0, 3), True).shape == (0, 3)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_stream_of_the_wrong_length_is_refused(size: int) -> None:
    """Ten codes of three bits take four bytes; any other number is an error that says so."""
    with pytest.raises(ValueError, match=f"10 codes of 3 bits take 4 bytes, not {size}"):
        unpack(torch.zeros(size, dtype=torch.uint8), 3, (10,), False)
