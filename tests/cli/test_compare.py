"""`qpass compare` hands its arguments on, and says what it makes of mistakes before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import qpass.compare.matrix as matrix
from qpass.cli import main
from qpass.recipe.structure import to_data


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `qpass compare` asked of the matrix; every cell fails but the first."""
    seen: dict[str, Any] = {}

    def compare(
        cells: Any, settings: Any, progress: Any, heard: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        seen.update(cells=cells, settings=settings)
        rows: list[dict[str, Any]] = []
        for cell in cells:
            ends = {"status": "failed", "error": "oh"} if rows else {"status": "done"}
            rows.append({**matrix.WAITING, "recipe": cell.recipe.name, "model": cell.model, **ends})
        heard({"schema": 1, "cells": rows})
        return {"schema": 1, "cells": rows}

    monkeypatch.setattr(matrix, "compare", compare)
    return seen


def test_arguments_arrive(given: dict[str, Any], plugin: Path, tmp_path: Path) -> None:
    """Models, preset, changes, folder, device and plugin files reach the functions that use them."""
    models = ["--model", "cifar10-dit", "--model", "cifar10-unet"]
    rest = [
        "--preset",
        "fast",
        "--set",
        "seed=1",
        "--device",
        "cpu",
        "--plugin",
        str(plugin),
        "--out",
        str(tmp_path),
    ]
    assert main(["compare", "w4a4", *models, *rest]) == 2  # as the second cell fails
    assert [cell.title for cell in given["cells"]] == ["w4a4 on cifar10-dit", "w4a4 on cifar10-unet"]
    assert [(c.recipe.seed, to_data(c.recipe.calibration)["samples"]) for c in given["cells"]] == [(1, 32)] * 2
    assert given["settings"] == matrix.Settings(out=tmp_path, device="cpu", plugins=(plugin,))


def test_what_is_left(given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A document for programs, a table for people in a file and on the terminal, and exit code 0 where all is well."""
    assert main(["compare", "w4a4", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "compare.json").read_text())
    assert document["cells"][0]["recipe"] == "w4a4"
    assert "| cifar10-unet | w4a4 |" in (tmp_path / "compare.md").read_text()
    out = capsys.readouterr().out
    assert "cifar10-unet" in out
    assert out.endswith(f"table: {tmp_path / 'compare.md'}\n")


def test_failed_cells_are_counted(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is printed with each error, and the exit code says that not all is well."""
    assert main(["compare", "w4a4", "w8a8", "w6a6", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "w8a8 on cifar10-unet failed: oh" in out
    assert err == "error: 2 of 3 runs failed; the same command tries them again\n"


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All are listed together, with the way out, and nothing is written."""
    out = tmp_path / "out"
    assert main(["compare", "w4a9", "w8a8", "--model", "cifar10-dti", "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: compare: 2 mistakes\n  1. w4a9: unknown recipe 'w4a9', did you mean 'w4a")
    assert "2. w8a8: model: unknown model 'cifar10-dti', did you mean 'cifar10-dit'" in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--out", "x"], "error: Missing argument 'RECIPE...'"),
        (["w4a4"], "error: Missing option '--out'"),
        (["w4a4", "--out", "x", "--set", "steps"], "error: --set: 'steps' is not KEY=VALUE"),
        (["w4a4", "--out", "x", "--device", "gpu"], "error: --device: 'gpu' is not a device"),
        (["w4a4", "--out", "x", "--device", "cuda:99"], "error: device 'cuda:99': this machine has"),
        (["w4a4", "--out", "x", "--preset", "fats"], "error: compare: w4a4: unknown preset 'fats', did"),
    ],
)  # fmt: skip
def test_a_wrong_command(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear error, before anything is loaded."""
    assert main(["compare", *args]) == 2
    assert capsys.readouterr().err.startswith(said)
