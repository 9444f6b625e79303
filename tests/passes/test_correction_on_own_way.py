"""On the quantized model's own way each step's output is corrected before the next step is taken."""

from __future__ import annotations

import copy
from typing import ClassVar

import attrs
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from qpass_models.diffusers_model import DiffusersModel
from qpass_passes import output_correction
from qpass_passes.assign import Assign
from qpass_passes.output_correction import OutputCorrection
from qpass_passes.simulate import Simulate

from qpass.analysis import Analysis
from qpass.errors import PreconditionError
from qpass.graph import trace
from qpass.manager import PassManager
from qpass.sampling import trajectory


def rounded(context, **options):
    """A model at few bits, corrected."""
    passes = [Assign(weight="int3 channel", input="int4 tensor"), Simulate(), OutputCorrection(**options)]
    return PassManager(passes).run(copy.deepcopy(context.reference), context)


def left_over(graph, context, images=8):
    """Along the corrected model's own way, by numpy: how far the line of its output over full precision's leaves 1,
    and the greatest mean error, at each step."""
    found = []

    def denoise(*inputs):
        ours, theirs = graph(*inputs), context.reference(*inputs)
        y, q = (x[:, :3].double().numpy() for x in (theirs, ours))
        centred, moved = (x - x.mean((0, 2, 3), keepdims=True) for x in (y, q))
        slope = (centred * moved).sum() / (centred**2).sum()
        found.append((abs(slope - 1), np.abs((q - y).mean((0, 2, 3))).max()))
        return ours

    with torch.no_grad():
        list(
            trajectory(
                denoise, context.model.sampler(), context.sampling, seed=context.seed, stream="calibration",
                indices=range(images), device=context.device,
            )
        )  # fmt: skip
    return found


def test_every_step_of_its_own_way_is_right_on_average(context):
    """Slope 1 and mean error 0 at all of them; corrected on full precision's way it leaves them as it goes on."""
    own = left_over(rounded(context, way="own").graph, context)
    full = left_over(rounded(context).graph, context)
    assert len(own) == 4
    assert max(max(one) for one in own) < 1e-4
    assert full[0] == pytest.approx((0, 0), abs=1e-4)  # both ways begin with the same noise
    assert min(max(one) for one in full[1:]) > 1e-3


def test_parts_of_a_batch_make_no_difference(context, monkeypatch):
    """Models are called with few rows at once, and the correction of a step is that of all images."""
    whole = rounded(context, way="own").graph.output_correction
    monkeypatch.setattr(output_correction, "BATCH", 3)
    parts = rounded(context, way="own").graph.output_correction
    assert torch.allclose(whole.gain, parts.gain, rtol=1e-4)
    assert torch.allclose(whole.shift, parts.shift, rtol=1e-3, atol=1e-5)


def test_steps_in_groups(context):
    """A group's first step is corrected by what is known by then; the artifact holds one factor for each group."""
    result = rounded(context, way="own", groups=2)
    gain = result.graph.output_correction.gain
    assert gain.shape[0] == 2
    assert torch.isfinite(gain).all()


def test_images_as_many_as_the_rows_allow(context, monkeypatch):
    """Each image has a row at every step; at least one image goes."""
    seen = []
    real = output_correction.trajectory

    def watched(*args, indices, **kwargs):
        seen.append(indices)
        return real(*args, indices=indices, **kwargs)

    monkeypatch.setattr(output_correction, "trajectory", watched)
    for rows in (2048, 23, 1):
        rounded(context, way="own", rows=rows)
    assert seen == [list(range(8)), list(range(5)), [0]]


def test_with_guidance(context, tmp_path):
    """Rows with and without the condition are corrected alike, as one output is made of both."""
    torch.manual_seed(0)
    made = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    made.save_pretrained(tmp_path)
    DDIMScheduler(beta_schedule="linear").save_pretrained(tmp_path)
    adapter = DiffusersModel(path=str(tmp_path))
    reference = trace(adapter.load(), adapter.example(), call=adapter.call, dynamic=adapter.dynamic())
    sampling = attrs.evolve(context.sampling, guidance=1.5)
    context = attrs.evolve(context, model=adapter, reference=reference, sampling=sampling)
    own = left_over(rounded(context, way="own").graph, context)
    assert max(max(one) for one in own) < 1e-4


def test_a_calibration_set_that_does_not_sample(context):
    """There is no way to follow, which is said before anything is done; full precision's rows need none."""

    @attrs.frozen(kw_only=True)
    class Noise(Analysis):
        name: ClassVar[str] = "noise"

    context = attrs.evolve(context, calibration=Noise)
    with pytest.raises(PreconditionError, match=r"output-correction: calibration 'noise' does not.*uniform-steps"):
        OutputCorrection(way="own").requires(context.reference, context)
    OutputCorrection().requires(context.reference, context)
