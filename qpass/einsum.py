"""What an einsum of two tensors multiplies and sums."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import Tensor


def macs(equation: str, tensors: Sequence[Tensor]) -> int:
    """Multiply-accumulates of einsum over two tensors: none where nothing is summed over both of them.

    >>> import torch
    >>> macs("bij,bjd->bid", [torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)])
    120
    >>> macs("...ij,...j", [torch.zeros(6, 2, 3, 4), torch.zeros(2, 4)]), macs("bc,c->bc", [torch.zeros(2, 3)] * 2)
    (144, 0)
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    times: Counter[str] = Counter()  # in how many of the tensors each index is
    for term, tensor in zip(inputs.split(","), tensors, strict=True):
        found = dict(_named(term, tensor))
        times.update(found.keys())
        for name, size in found.items():
            sizes[name] = max(sizes.get(name, 1), size)  # a dimension of 1 is repeated
    if not arrow:  # an index that is there once is kept, and so is what the dots stand for
        output = "..." + "".join(name for name in sizes if inputs.count(name) == 1)
    kept = {name for name in sizes if (name.startswith(".") and "..." in output) or name in output}
    # what is in one tensor alone, and not kept, is summed before anything is multiplied
    multiplied = {name for name in sizes if name in kept or times[name] > 1}
    return math.prod(sizes[name] for name in multiplied) if multiplied - kept else 0


def sums_products(equation: str) -> bool:
    """Whether an einsum multiplies and then sums: an index of two tensors or more is missing in its result.

    >>> sums_products("btc,bsc->bts"), sums_products("ij,jk"), sums_products("t,d->td"), sums_products("nhwc->nchw")
    (True, True, False, False)
    """
    inputs, arrow, output = equation.replace(" ", "").replace("...", ".").partition("->")
    times = Counter(name for term in inputs.split(",") for name in set(term))
    if not arrow:
        output = "." + "".join(name for name in times if inputs.count(name) == 1)
    return any(count > 1 and name not in output for name, count in times.items())


def _named(term: str, tensor: Tensor) -> Iterator[tuple[str, int]]:
    """The dimensions with their letters; those that the dots stand for are counted from the last."""
    before, dots, after = term.partition("...")
    shape = list(tensor.shape)
    end = len(shape) - len(after)
    yield from zip(before, shape[: len(before)], strict=True)
    yield from zip(after, shape[end:], strict=True)
    if dots:
        yield from ((f".{place}", size) for place, size in enumerate(reversed(shape[len(before) : end])))
