"""Recipes that are wrong in what only the model can tell, in this process and in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from endings import QUANTIZE, RECIPE, Folder, Run, diffusers, refused, stopped


class TestRecipe:
    """What only the model can tell is wrong."""

    @pytest.mark.parametrize("change", ['passes.assign.keep=["entr"]', 'passes.assign.rules=[{match = "entr"}]'])
    def test_a_glob_that_matches_nothing(self, run: Run, change: str) -> None:
        """The nearest node is given."""
        refused(run("--set", change), "assign: the glob 'entr' matches no node, did you mean 'enter'")

    def test_globs_that_match_nothing(self, run: Run, copy: Folder) -> None:
        """All of them are said; where none is near, some nodes are listed, not hundreds."""
        outcome = run("--set", "passes.assign.keep=['zz?', 'yy?', 'conv_*']", model=copy())
        refused(outcome, "the glob 'zz?' matches no node, known: conv_in, ", "the glob 'yy?' matches no node")
        assert "conv_*" not in outcome.err

    def test_more_steps_than_timesteps(self, run: Run) -> None:
        """The model's number is given."""
        refused(
            run("--set", "sampling.steps=1001"), "sampling.steps: at most the model's 1000 timesteps, not 1001"
        )

    def test_several_mistakes(self, run: Run) -> None:
        """Of passes, evaluators and sampling: all at once."""
        outcome = run("--set", "sampling.steps=1001", "--set", "passes.assign.keep=['zz?']")
        refused(outcome, "recipe 'bad' on 'net': 2 mistakes", "  1. assign: ", "  2. sampling.steps: ")

    def test_more_time_groups_than_steps(self, run: Run) -> None:
        """How many there are is only known once calibration has sampled; nothing is recorded before that."""
        stopped(
            run("--set", "passes.assign.input=int8 tensor time:9"),
            "'int8 tensor asym time:9' asks for 9 time groups, but calibration saw only 2 timesteps",
            "in pass 'simulate' (number 2); passes that ran before it: assign",
        )


def test_in_a_process_of_its_own(copy: Folder, tmp_path: Path) -> None:
    """What the shell sees is the same."""
    folder = copy(weights=lambda t: t.pop("conv_in.weight"))
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(model=diffusers(folder)) + QUANTIZE)
    done = subprocess.run(
        [sys.executable, "-m", "qpass", "run", recipe, "--out", tmp_path / "out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: the weights in ")
    assert "Traceback" not in done.stderr
