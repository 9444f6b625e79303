"""Rows of live tensors in memory or in files come back as they were written."""

from __future__ import annotations

import pytest
import torch
from qpass_passes.reconstruction.rows import FileRows, MemoryRows, Pool


@pytest.mark.parametrize("budget", [10**9, 0], ids=["memory", "files"])
def test_rows_come_back(tmp_path, budget):
    """Written in pieces, read in any order, on either side of the budget; a file goes when it is closed."""
    pool = Pool(budget, tmp_path / "rows")
    source = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        values = torch.randn(10, 3, 4, generator=source).mul(100).to(dtype)
        rows = pool.rows(10, values[:2], 300.0)
        for start in (0, 4, 8):
            rows.write(start, values[start : start + 4])
        index = torch.tensor([7, 0, 9, 7])
        expected = values.half().float() if budget == 0 and dtype == torch.float32 else values
        assert torch.equal(rows.read(index), expected[index])
        rows.close()
    assert pool.used == 0
    assert not list(tmp_path.rglob("*.bin"))


def test_values_beyond_fp16_keep_their_dtype(tmp_path):
    """A file holds fp16 where the values seen are small enough, and fp32 where they are not."""
    pool = Pool(0, tmp_path)
    for largest, expected in ((1e3, torch.float16), (1e5, torch.float32)):
        rows = pool.rows(2, torch.zeros(2, 5), largest)
        assert isinstance(rows, FileRows)
        assert rows.kept == expected
        rows.close()
    assert isinstance(Pool(40, tmp_path).rows(2, torch.zeros(2, 5), 1e5), MemoryRows)


def test_a_value_that_no_one_foresaw(tmp_path):
    """Where a later row does not fit in fp16, the file goes on in fp32, the rows before it included."""
    pool = Pool(0, tmp_path)
    rows = pool.rows(100, torch.zeros(2, 5), 1.0)
    values = torch.randn(100, 5)
    values[70, 2] = 1e6
    for start in range(0, 100, 20):
        rows.write(start, values[start : start + 20])
    found = rows.read(torch.arange(100))
    assert torch.equal(found[:60], values[:60].half().float())
    assert torch.equal(found[60:], values[60:])
    rows.close()
    assert not list(tmp_path.iterdir())
