"""An artifact's graph becomes Python source, so a name in it must never be more than a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forger import Document, read, refusal, write
from safetensors.torch import load_file, save_file

from qpass.plugins import Catalog

CANARY = "torch.save([], {file!r})"  # `torch` is in scope of every graph's code


def harm(file: Path) -> Iterator[tuple[str, Callable[[Document], None]]]:
    """Ways to slip an expression into the Python source that torch.fx makes of a graph."""
    evil = CANARY.format(file=str(file))
    alias = evil.replace(".", "\\x2e")  # no dots in what is split at dots

    def node(document: Document, kind: int) -> list[Any]:
        return next(n for n in document["graph"]["nodes"] if n[0] == kind)

    def retarget(document: Document, kind: int, target: str) -> None:
        document["graph"]["targets"].append(target)
        node(document, kind)[1] = len(document["graph"]["targets"]) - 1

    def placeholder(document: Document) -> None:
        retarget(document, 0, f"x={evil}")

    def keyword(document: Document) -> None:
        node(document, 2)[3] = {f"a={evil}, b": 1}

    def attribute(document: Document) -> None:
        retarget(document, 1, f'x"), eval("{alias}"), getattr(self, "x')

    def module(document: Document) -> None:
        name = f'x"), eval("{alias}"), getattr(self, "x'
        document["graph"]["modules"][name] = document["graph"]["modules"]["conv_in"]
        retarget(document, 3, name)

    def method(document: Document) -> None:
        retarget(document, 3, "register_forward_hook")

    def inner(document: Document) -> None:
        retarget(document, 1, "__init__.__globals__")

    yield from {f.__name__: f for f in (placeholder, keyword, attribute, module, method, inner)}.items()


@pytest.mark.parametrize("way", ["placeholder", "keyword", "attribute", "module", "method", "inner"])
def test_no_name_becomes_code(folder: Path, known: Catalog, tmp_path: Path, way: str) -> None:
    """Source text in the place of a name is refused, and nothing of it runs."""
    canary = tmp_path / "canary"
    document = read(folder)
    dict(harm(canary))[way](document)
    if way == "attribute":  # a tensor of that name makes it look well
        tensors = load_file(folder / "model.safetensors")
        tensors[document["graph"]["targets"][-1]] = torch.zeros(1)
        save_file(tensors, folder / "model.safetensors")
    write(folder, document)
    refusal(folder, known)
    assert not canary.exists()


def test_code_in_names_is_real_code(tmp_path: Path) -> None:
    """The check above is needed: torch.fx itself runs what stands in the name of an argument."""
    canary = tmp_path / "canary"
    graph = torch.fx.Graph()
    graph.output(graph.create_node("placeholder", f"x={CANARY.format(file=str(canary))}", name="x"))
    torch.fx.GraphModule(torch.nn.Module(), graph)
    assert canary.exists()
