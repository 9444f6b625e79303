"""Tiny pipelines on disk, each written once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "graph"))  # the tiny models that tracing is held to
import pipelines


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`pipeline_folder(name)`: the folder that `save_pretrained` wrote."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "pipeline"
        pipelines.write(name, folder)
        return folder

    return make
