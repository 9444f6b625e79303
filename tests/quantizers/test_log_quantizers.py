"""log2, log-sqrt2 and adaptive-log against their papers' formulas, computed here one value at a time."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from qpass_passes.assign import Assign
from qpass_passes.quantizers.absmax import AbsMax
from qpass_passes.quantizers.adaptive_log import AdaptiveLog
from qpass_passes.quantizers.learned_step import LearnedStep
from qpass_passes.quantizers.log2 import Log2
from qpass_passes.quantizers.log_sqrt2 import LogSqrt2
from qpass_passes.quantizers.mse import Mse, rounding_error
from qpass_passes.quantizers.percentile import Percentile
from qpass_passes.simulate import Simulate

from qpass.artifact import Artifact, load_artifact, save
from qpass.errors import QpassError
from qpass.manager import PassManager
from qpass.quantizer import QParams, fake_quantize, log_codebook, quantize, summarise
from qpass.slots import read_params, slots
from qpass.spec import QuantSpec, parse_spec

LOGS = [Log2(), LogSqrt2(), AdaptiveLog()]
names = [quantizer.name for quantizer in LOGS]


def stream(values, parts=1, groups=None):
    """Batches of values, as often as asked."""
    group = torch.zeros(len(values), dtype=torch.long) if groups is None else groups
    pairs = list(zip(values.chunk(parts), group.chunk(parts), strict=True))
    return lambda: iter(pairs)


def softmax(batch=4, heads=1, rows=1000, seed=0, sharpness=3.0):
    """Rows of 16 probabilities, (B, K, M)."""
    scores = torch.randn(batch, heads, rows, 16, generator=torch.Generator().manual_seed(seed)) * sharpness
    return scores.softmax(-1).reshape(batch, heads, -1)


def plain(x, s, step, bits):
    """round(-log2(x / s) / step), clipped at 0; codes from 2^b - 1 on are 0. Plain Python, in double precision."""
    if x <= 0:
        return 0.0
    code = max(0, round(-math.log2(x / s) / step))
    return s * 2 ** (-step * code) if code < 2**bits - 1 else 0.0


def repq(x, s, bits):
    """RepQ-ViT's integer form: 2^-ceil(q/2), times the root of 2 where q is odd."""
    q = max(0, round(-2 * math.log2(x / s)))
    if q >= 2**bits - 1:
        return 0.0
    return 2.0 ** -math.ceil(q / 2) * (math.sqrt(2) if q % 2 else 1.0) * s


@pytest.mark.parametrize("text", ["log2:4", "log-sqrt2:2", "log:8", "levels:4"])
@pytest.mark.parametrize(
    "quantizer", [*LOGS, AbsMax(), Mse(), Percentile(), LearnedStep(iterations=3)], ids=lambda one: one.name
)
def test_values_below_zero_need_a_sign(quantizer, text):
    """Without one they are refused, with the spec that holds them; with one, and as noise of 1e-4, they are fitted."""
    x = softmax(rows=20)
    for low, fits in ((-1e-4, True), (-0.5, False)):
        x[1, 0, 7] = low
        for sign in ("asym", "sym"):
            spec = parse_spec(f"{text} tensor {sign}", symmetric=False)
            if fits or sign == "sym":
                assert quantizer.fit(stream(x), spec).tensors["scale"].isfinite().all()
                continue
            said = f"'{text} tensor asym' has no levels below 0, and values down to -0.5 were recorded; "
            with pytest.raises(ValueError, match=re.escape(f"{said}write '{text} tensor sym'")):
                quantizer.fit(stream(x), spec)


def test_a_user_reads_which_input_it_was(context):
    """What is refused while a graph is fitted is the user's mistake: one sentence that begins with the place."""
    run = PassManager((Assign(weight="float", input="log2:4 tensor", edge_weight="float"), Simulate()))
    with pytest.raises(
        QpassError, match=r"^mse cannot fit '[\w.]+input0_q': 'log2:4 tensor asym' has no .*"
    ) as told:
        run.run(copy.deepcopy(context.reference), context)
    assert told.value.exit_code == 2
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("text", "step"), [("log2", 1.0), ("log-sqrt2", 0.5)], ids=["log2", "log-sqrt2"])
def test_codes_are_the_papers(text, step, bits):
    """For each width: scale 0.9, values from 1.5 down to 1e-12, zero and a negative one."""
    spec = parse_spec(f"{text}:{bits} tensor", symmetric=False)
    table, thresholds = log_codebook(spec, step, torch.device("cpu"))
    x = torch.cat([torch.logspace(0.17, -12, 500), torch.tensor([0.0, -0.3])])[None]
    tensors = {"scale": torch.full((1, 1), 0.9), "thresholds": thresholds, "table": table}
    ours = fake_quantize(x, spec, tensors, "channel-last")[0]
    expected = [plain(value, 0.9, step, bits) for value in x[0].tolist()]
    assert torch.allclose(ours, torch.tensor(expected), rtol=1e-5, atol=1e-30)
    if step == 0.5:
        positive = [repq(value, 0.9, bits) for value in x[0, :-2].tolist()]
        assert torch.allclose(ours[:-2], torch.tensor(positive), rtol=1e-5, atol=1e-30)
    codes = quantize(x, spec, tensors, "channel-last")
    assert codes.max() <= 2**bits - 1
    assert len(table) == min(2**bits, 2 + int(96 / step))  # 2^-254 is no number of fp32


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_signed_levels_mirror_each_other(bits):
    """Symmetric: one bit is the sign, and a value's negative is rounded to the negative of its own."""
    spec = QuantSpec(format="log-sqrt2", bits=bits, symmetric=True)
    table, thresholds = log_codebook(spec, 0.5, torch.device("cpu"))
    assert torch.equal(table, -table.flip(0))
    assert len(table) <= 2**bits
    x = torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    tensors = {"scale": torch.ones(1, 1), "thresholds": thresholds, "table": table}
    assert torch.equal(
        fake_quantize(x, spec, tensors, "channel-last"), -fake_quantize(-x, spec, tensors, "channel-last")
    )


def test_log2_takes_the_largest_value():
    """Scale max for softmax outputs, max|x| where signed, in each time group."""
    x = softmax(4)
    x[::2] *= 0.5
    groups = torch.arange(4) % 2
    spec = parse_spec("log2:4 tensor time:2", symmetric=False)
    scale = Log2().fit(stream(x, 2, groups), spec).tensors["scale"]
    assert scale.flatten().tolist() == [x[::2].max().item(), x[1::2].max().item()]
    signed = Log2().fit(stream(-x), parse_spec("log2:4 tensor sym", symmetric=False)).tensors["scale"]
    assert signed.item() == x.max().item()


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_log_sqrt2_takes_the_best_quantile(bits):
    """The scale is the one of numpy's three quantiles with the least squared error, computed from the formula."""
    x = softmax(1, rows=2000)
    spec = parse_spec(f"log-sqrt2:{bits} tensor", symmetric=False)
    scale = LogSqrt2(quantiles=(0.9, 0.99, 1.0)).fit(stream(x), spec).tensors["scale"].item()
    values = x.flatten().double().numpy()
    tried = {
        s: sum((plain(value, s, 0.5, bits) - value) ** 2 for value in values)
        for s in (np.quantile(values, q, method="inverted_cdf") for q in (0.9, 0.99, 1.0))
    }
    assert scale == pytest.approx(min(tried, key=tried.get), rel=1e-6)


def test_adaptive_log_finds_the_base_the_values_have():
    """Values that are powers of 2^(23/37), at 4 bits: that base is found and the error is nothing."""
    step = 23 / 37
    x = 2.0 ** (-step * torch.arange(15).repeat(20).double())
    params = AdaptiveLog().fit(stream(x.float().reshape(1, 1, -1)), parse_spec("log:4 tensor", symmetric=False))
    table = params.tensors["table"]
    assert (table[-1] / table[-2]).item() == pytest.approx(2**step, rel=1e-5)
    summary = summarise(stream(x.float().reshape(1, 1, -1)), parse_spec("log:4 tensor", symmetric=False))
    error = rounding_error(summary, params, parse_spec("log:4 tensor", symmetric=False), 2.0)
    assert error.item() < 1e-4 * x.square().sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_adaptive_log_is_near_the_best_of_all(bits, sharpness):
    """Its error is within 10 % of the least over every base and 64 scales, and below log2's and log-sqrt2's."""
    x = softmax(1, rows=200, sharpness=sharpness)
    spec = parse_spec(f"log:{bits} tensor", symmetric=False)
    summary = summarise(stream(x), spec)

    def error(params):
        return rounding_error(summary, params, spec, 2.0).item()

    found = error(AdaptiveLog().fit(stream(x), spec))
    every = []
    for q in range(1, 75):
        table, thresholds = log_codebook(spec, q / 37, torch.device("cpu"))
        for share in torch.linspace(1.2, 0.3, 64):
            scale = (x.max() * share).reshape(1, 1)
            tensors = {"scale": scale, "thresholds": thresholds, "table": table}
            every.append(error(QParams(kind="codebook", tensors=tensors)))
    assert found <= min(every) * 1.1
    for other in (Log2(), LogSqrt2()):
        assert found <= error(other.fit(stream(x), spec))


@pytest.mark.parametrize("quantizer", LOGS, ids=names)
def test_a_base_that_is_named_is_kept(quantizer):
    """`log2:3` and `log-sqrt2:3` have their own levels whoever fits them; `log:3` has the quantizer's."""
    x = softmax(2)
    for text, ratio in (("log2:3", 2.0), ("log-sqrt2:3", 2**0.5)):
        table = quantizer.fit(stream(x), parse_spec(f"{text} tensor", symmetric=False)).tensors["table"]
        assert (table[-1] / table[-2]).item() == pytest.approx(ratio)
    free = quantizer.fit(stream(x), parse_spec("log:3 tensor", symmetric=False)).tensors["table"]
    ratio = (free[-1] / free[-2]).item()
    if quantizer.name != "adaptive-log":
        assert ratio == pytest.approx({"log2": 2.0, "log-sqrt2": 2**0.5}[quantizer.name])
    else:
        assert (math.log2(ratio) * 37) == pytest.approx(round(math.log2(ratio) * 37), abs=1e-3)


@pytest.mark.parametrize("quantizer", LOGS, ids=names)
def test_other_formats_are_left_to_another(quantizer):
    """A spec that is not logarithmic gets what `otherwise` fits, to the bit."""
    x = softmax(2)
    for text in ("int4 tensor", "nf4 tensor", "int8 tensor sym"):
        spec = parse_spec(text, symmetric=False)
        ours, theirs = (q.fit(stream(x), spec).tensors for q in (quantizer, Mse()))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("quantizer", LOGS, ids=names)
@pytest.mark.parametrize(
    "text", ["log:2 tensor", "log:5 token", "log-sqrt2:8 channel sym", "log2:3 group:4 time:2"]
)
def test_any_granularity(quantizer, text):
    """One scale for each set and time group, streamed or at once; each set is as good as its own fit is."""
    from qpass.kernels import reference

    spec = parse_spec(text, symmetric=False)
    x = torch.rand(4, 8, 6, 6, generator=torch.Generator().manual_seed(1)) ** 6
    values = reference.arrange(x, "channel-first", spec.granularity, spec.group_size)
    groups = torch.arange(4) % spec.time_groups
    params = quantizer.fit(stream(values, 2, groups), spec)
    assert params.tensors["scale"].shape == (spec.time_groups, values.shape[1])
    rounded = fake_quantize(x, spec, params.tensors, "channel-first", groups)
    assert (rounded - x).square().sum() < 0.2 * x.square().sum()


def test_softmax_outputs_alone_take_a_log_format(context, tmp_path):
    """assign's `softmax` reaches the second product's first operand only; the fitted base survives an artifact."""
    passes = [
        Assign(input="int8 tensor", softmax="log:3 tensor time:2"),
        Simulate(weight=Mse(), input=AdaptiveLog(), rows=8),
    ]
    graph = PassManager(passes).run(copy.deepcopy(context.reference), context).graph
    found = {slot.home: slot for slot in slots(graph) if slot.spec.format == "log"}
    assert found
    assert all(home.endswith("pv_0.input0_q") for home in found)
    for slot in found.values():
        tensors = read_params(graph, slot).tensors
        assert tensors["scale"].shape == (2, 1)
        assert tensors["table"].shape == (8,)
    save(Artifact(graph=graph), tmp_path / "artifact", context.catalog)
    inputs = context.model.example(3)
    with torch.no_grad():
        again = load_artifact(tmp_path / "artifact", context.catalog).graph(*inputs)
        assert torch.equal(again, graph(*inputs))
