"""Folders of models that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from endings import QUANTIZE, WEIGHTS, Folder, Run, refused, stopped


class TestModel:
    """A folder that is not what it should be."""

    def test_no_folder(self, run: Run, tmp_path: Path) -> None:
        """The option and the folder are named."""
        refused(
            run(model=tmp_path / "nowhere"), "model.path: no folder '", "give one that `save_pretrained` wrote"
        )

    def test_no_configuration(self, run: Run, copy: Folder) -> None:
        """What was looked for is named."""
        folder = copy()
        (folder / "config.json").unlink()
        refused(run(model=folder), "holds neither model_index.json nor config.json")

    @pytest.mark.parametrize(
        ("text", "said"),
        [("{", "cannot be read: "), ("[]", "must hold a JSON object"), ("\0", "cannot be read: ")],
    )
    def test_a_torn_configuration(self, run: Run, copy: Folder, text: str, said: str) -> None:
        """The file is named."""
        folder = copy()
        (folder / "config.json").write_text(text)
        refused(run(model=folder), f"'{folder / 'config.json'}'", said)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda c: c.update(_class_name="UNet3DModel"), "holds a UNet3DModel, which qpass does not know how"),
            (lambda c: c.pop("_class_name"), "holds a None, which qpass does not know how to call"),
            (lambda c: c.update(down_block_types=["NoBlock"]), "its configuration makes no UNet2DModel: "),
            (lambda c: c.update(norm_num_groups=7), "its configuration makes no UNet2DModel: "),
            (lambda c: c.update(sample_size="large"), "sample_size must be one or two whole numbers, not 'large'"),
        ],
        ids=["unknown class", "no class", "unknown block", "groups", "size"],
    )
    def test_a_wrong_configuration(self, run: Run, copy: Folder, change: Any, said: str) -> None:
        """Diffusers' own reason is passed on."""
        refused(run(model=copy(config=change)), said)

    def test_options_left_out(self, run: Run, copy: Folder) -> None:
        """A configuration may leave out what diffusers has a default for, as older ones do."""
        folder = copy(config=lambda c: [c.pop(key) for key in ("in_channels", "out_channels", "sample_size")])
        assert run(model=folder).code == 0

    @pytest.mark.parametrize("size", [0, 7, 1000, -1000])
    def test_weights_cut_short(self, run: Run, copy: Folder, size: int) -> None:
        """It is said that the file may be incomplete."""
        folder = copy()
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
        stopped(run(model=folder), "cannot be loaded: ", "fetch the folder again, it may be cut short")

    def test_no_weights(self, run: Run, copy: Folder) -> None:
        """The folder is named."""
        folder = copy()
        (folder / WEIGHTS).unlink()
        stopped(run(model=folder), f"the weights in {str(folder)!r} cannot be loaded: ")

    def test_a_missing_tensor(self, run: Run, copy: Folder) -> None:
        """Diffusers would make one up; here it is named, and nothing else is said."""
        outcome = run(model=copy(weights=lambda t: t.pop("conv_in.weight")))
        stopped(outcome, "lack 1 tensors that its config.json asks for, 'conv_in.weight' first")
        assert "newly initialized" not in outcome.err

    def test_a_tensor_of_another_shape(self, run: Run, copy: Folder) -> None:
        """The tensor and both shapes are given."""
        folder = copy(weights=lambda t: t.update({"conv_in.weight": torch.zeros(3, 3)}))
        stopped(run(model=folder), "size mismatch for conv_in.weight")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["conv_in.weight", "conv_norm_out.bias"])
    def test_weights_that_are_no_numbers(self, run: Run, copy: Folder, name: str, value: float) -> None:
        """The tensor is named, whether it would have been quantized or not."""
        folder = copy(weights=lambda t: t[name].view(-1)[:1].fill_(value))
        stopped(run(model=folder), "hold NaN or infinities, first in ", name)

    def test_no_noise_schedule(self, run: Run, copy: Folder) -> None:
        """An evaluator that needs images is refused where none can be drawn, before anything runs."""
        folder = copy()
        (folder / "scheduler_config.json").unlink()
        refused(
            run(model=folder, rest=QUANTIZE + '[[evaluators]]\nuse = "drift"\n'),
            "evaluator 'drift' needs images, but the model comes without a noise schedule",
            "remove use = 'drift' from [[evaluators]], or use a model that images can be drawn from",
        )

    def test_weights_alone_need_no_noise_schedule(self, run: Run, copy: Folder) -> None:
        """Nothing is sampled where only weights are quantized and nothing looks at images."""
        folder = copy()
        (folder / "scheduler_config.json").unlink()
        assert run(model=folder, rest=QUANTIZE + '[[evaluators]]\nuse = "size"\n').code == 0

    @pytest.mark.parametrize("where", ["file", "recipe"])
    def test_a_noise_schedule_that_is_none(self, run: Run, copy: Folder, where: str) -> None:
        """Diffusers' own reason is passed on."""
        folder, args = copy(), ("--set", "model.scheduler.beta_schedule=purple")
        if where == "file":
            (folder / "scheduler_config.json").write_text('{"beta_schedule": "purple"}')
            args = ()
        refused(run(*args, model=folder), "the model's noise schedule cannot be built: purple is not implemented")
