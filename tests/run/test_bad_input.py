"""Whatever a user hands over, a run ends in one clear sentence, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qpass.cli import main
from qpass.cli.new import files

WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPE = """
[model]
{model}
[sampling]
steps = 2
[calibration]
use = "uniform-steps"
samples = 2
steps = 2
"""
QUANTIZE = """
[[passes]]
use = "assign"
input = "float"
edge_input = "float"
attention = "float"
[[passes]]
use = "simulate"
weight = "absmax"
"""
PASS = """
import attrs
import qpass

@attrs.frozen(kw_only=True)
class Strange(qpass.Pass):
    \"\"\"Does something strange.\"\"\"
    name = "strange"
    def requires(self, graph, ctx):
        {requires}
    def run(self, graph, ctx):
        {run}

@qpass.hookimpl
def register_passes():
    return [Strange]
"""
EVALUATOR = """
import attrs
import numpy as np
import qpass
import torch
from qpass.evaluator import Series

@attrs.frozen(kw_only=True)
class Strange(qpass.Evaluator):
    \"\"\"Sees something strange.\"\"\"
    name = "strange"
    def observe(self, subject, ctx):
        {observe}
    def score(self, candidate, reference):
        {score}

@qpass.hookimpl
def register_evaluators():
    return [Strange]
"""
Folder = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet2DModel that is quick to trace, and its noise schedule."""
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("smallest")
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    ).save_pretrained(folder)
    DDIMScheduler(beta_schedule="linear").save_pretrained(folder)
    return folder


@pytest.fixture
def copy(smallest: Path, tmp_path: Path) -> Folder:
    """That folder, with its configuration or its weights changed."""

    def copy(
        config: Callable[[dict[str, Any]], Any] | None = None, weights: Callable[[Tensors], Any] | None = None
    ) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(smallest, folder)
        if config is not None:
            data = json.loads((folder / "config.json").read_text())
            config(data)
            (folder / "config.json").write_text(json.dumps(data))
        if weights is not None:
            tensors = load_file(folder / WEIGHTS)
            weights(tensors)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return folder

    return copy


class Outcome:
    """How a run ended."""

    def __init__(self, code: int, err: str, out: Path) -> None:
        self.code, self.err, self.out = code, err, out

    @property
    def said(self) -> str:
        """The error itself: progress stands before it."""
        return self.err[max(self.err.find("error: "), self.err.find("this is a bug in qpass: "), 0) :]

    @property
    def files(self) -> set[str]:
        """What stands in the run's folder, its stages aside."""
        every = (path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file())
        return {str(path) for path in every if path.parts[0] != "stages"}


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`qpass run` in this process, on a diffusers folder or on the small network of `qpass new model`."""
    net = tmp_path / "net.py"
    net.write_text(files("model", "net")["qpass_net.py"])

    def run(*args: str, model: Path | None = None, rest: str = QUANTIZE, plugin: str | None = None) -> Outcome:
        recipe = tmp_path / "bad.toml"
        recipe.write_text(RECIPE.format(model=diffusers(model) if model else 'use = "net"') + rest)
        if plugin is not None:
            (tmp_path / "strange.py").write_text(plugin)
            args = (*args, "--plugin", str(tmp_path / "strange.py"))
        code = main(["run", str(recipe), "--out", str(tmp_path / "out"), "--plugin", str(net), *args])
        outcome = Outcome(code, capsys.readouterr().err, tmp_path / "out")
        assert "Traceback" not in outcome.err or "--debug" in args
        assert not list(tmp_path.rglob(".tmp-*")), "something was left half-written"
        return outcome

    return run


def diffusers(folder: Path) -> str:
    """The options of a model in a folder."""
    return f'use = "diffusers"\npath = {json.dumps(str(folder))}'


def refused(outcome: Outcome, *said: str) -> None:
    """Before anything was written: exit code 2 and one error."""
    assert outcome.code == 2
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("error: ") == 1
    for text in said:
        assert text in outcome.err
    assert not outcome.out.exists()


def stopped(outcome: Outcome, *said: str, code: int = 2) -> None:
    """On the way: one error at the end, and no artifact or report that looks like a finished one."""
    assert outcome.code == code
    for text in said:
        assert text in outcome.said
    assert outcome.files - {"calibration.json"} == {"recipe.toml"}  # it may have got as far as calibration


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


class TestPass:
    """A pass that breaks its contract, in a plugin file."""

    STRANGE = '[[passes]]\nuse = "strange"\n' + QUANTIZE

    def plugin(
        self, run: str = "return qpass.PassResult(graph=graph, changed=False)", requires: str = "pass"
    ) -> str:
        return PASS.format(run=run, requires=requires)

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("return None", "pass 'strange' must return a qpass.PassResult, not NoneType"),
            ("return graph", "pass 'strange' must return a qpass.PassResult, not GraphModule"),
            (
                "return qpass.PassResult(graph=None, changed=True)",
                "pass 'strange' must return a PassResult whose graph is a GraphModule, not NoneType",
            ),
            (
                "next(n for n in graph.graph.nodes if n.op == 'call_module').target = 'gone'; "
                "return qpass.PassResult(graph=graph, changed=True)",
                "pass 'strange' left a malformed graph: ",
            ),
            (
                "a, *_, b = graph.graph.nodes; b.append(a); return qpass.PassResult(graph=graph, changed=True)",
                "pass 'strange' left a malformed graph: ",
            ),
        ],
        ids=["nothing", "the graph", "no graph", "a module that is gone", "nodes out of order"],
    )
    def test_a_wrong_result(self, run: Run, body: str, said: str) -> None:
        """The rule is said in a line, with what came instead."""
        outcome = run(rest=self.STRANGE, plugin=self.plugin(body))
        stopped(outcome, said, "in pass 'strange' (number 1); passes that ran before it: none")
        assert outcome.said.count("\n") <= 3

    def test_a_function_that_no_artifact_may_hold(self, run: Run) -> None:
        """The hook that allows it is named, and the pass."""
        body = (
            "n = next(n for n in graph.graph.nodes if n.op == 'call_module'); n.op = 'call_function'; "
            "n.target = print; return qpass.PassResult(graph=graph, changed=True)"
        )
        stopped(
            run(rest=self.STRANGE, plugin=self.plugin(body)),
            "which is not on the list of ops an artifact may hold",
            "in the hook register_ops",
            "pass 'strange' (number 1)",
        )

    def test_one_that_raises(self, run: Run) -> None:
        """Exit code 1, with the pass's name and without a traceback."""
        outcome = run(rest=self.STRANGE, plugin=self.plugin("raise RuntimeError('boom')"))
        stopped(
            outcome, "RuntimeError: boom\n  in pass 'strange' (number 1)", "--debug shows the traceback", code=1
        )

    def test_one_that_raises_under_debug(self, run: Run) -> None:
        """The traceback leads to the plugin's own line."""
        outcome = run("--debug", rest=self.STRANGE, plugin=self.plugin("raise RuntimeError('boom')"))
        assert outcome.code == 1
        assert "Traceback (most recent call last):" in outcome.err
        assert "strange.py" in outcome.err

    def test_one_that_cannot_be_asked(self, run: Run) -> None:
        """`requires` is asked on a model without weights; one that fails there is named."""
        outcome = run(rest=self.STRANGE, plugin=self.plugin(requires="raise RuntimeError('boom')"))
        assert outcome.code == 1
        assert "in pass 'strange', asked about the model before its weights are read" in outcome.err
        assert not outcome.out.exists()

    def test_what_worked_is_kept(self, run: Run) -> None:
        """The same command, with the pass mended, goes on from the stages before it."""
        rest = QUANTIZE.replace(
            '[[passes]]\nuse = "simulate"', '[[passes]]\nuse = "strange"\n[[passes]]\nuse = "simulate"'
        )
        stopped(run(rest=rest, plugin=self.plugin("raise RuntimeError('boom')")), "before it: assign", code=1)
        mended = run(rest=rest, plugin=self.plugin())
        assert mended.code == 0
        assert "1. assign: kept from an earlier run" in mended.err
        assert "strange: kept" not in mended.err


class TestEvaluator:
    """An evaluator that breaks its contract, in a plugin file."""

    SEEN = "return qpass.Observation(numbers={'a': 1.0})"
    REST = '[[evaluators]]\nuse = "strange"\n'

    @pytest.mark.parametrize(
        ("observe", "said"),
        [
            ("return None", "must return a qpass.Observation from observe, not NoneType"),
            (
                "return qpass.Observation(numbers={'a': torch.ones(1)})",
                "numbers['a'] must be a number, not Tensor",
            ),
            ("return qpass.Observation(series={'a': [1, 2]})", "series['a'] must be a Series, not list"),
            (
                "return qpass.Observation(series={'a': Series(title='a', x=(1.0,), y=())})",
                "series['a'] has 1 x and 0 y",
            ),
            (
                "return qpass.Observation(images={'a': np.zeros((2, 3, 8, 8))})",
                "images['a'] must be uint8 of N x H x W x 3, not float64 of (2, 3, 8, 8)",
            ),
        ],
        ids=["nothing", "number", "series", "lengths", "images"],
    )
    def test_a_wrong_observation(self, run: Run, observe: str, said: str) -> None:
        """The rule is said with what came instead, before anything is reported."""
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(observe=observe, score="return ()"))
        assert outcome.code == 2
        assert said in outcome.said
        assert "in evaluator 'strange', looking at the original model" in outcome.said
        assert not {"report.json", "report.html"} & outcome.files

    @pytest.mark.parametrize(
        ("score", "said"),
        [
            ("return None", "must return a sequence of qpass.Metric, not NoneType"),
            ("return [1.0]", "must return qpass.Metric objects, not float"),
            ("return [qpass.Metric(name='m', value=torch.ones(1))]", "m must be a number, not Tensor"),
        ],
        ids=["nothing", "number", "tensor"],
    )
    def test_a_wrong_score(self, run: Run, score: str, said: str) -> None:
        """So is this."""
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(observe=self.SEEN, score=score))
        assert outcome.code == 2
        assert said in outcome.said
        assert "in evaluator 'strange', scoring what it saw" in outcome.said
        assert not {"report.json", "report.html"} & outcome.files

    @pytest.mark.parametrize("where", ["observe", "score"])
    def test_one_that_raises(self, run: Run, where: str) -> None:
        """Exit code 1, with the evaluator's name."""
        bodies = {"observe": self.SEEN, "score": "return ()", where: "raise RuntimeError('boom')"}
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(**bodies))
        assert outcome.code == 1
        assert "RuntimeError: boom\n  in evaluator 'strange', " in outcome.said

    def test_numbers_of_numpy(self, run: Run) -> None:
        """What numpy returns is a number too, whatever its precision, and one that is not finite is null."""
        observe = (
            "return qpass.Observation(numbers={'a': np.float32(0.5), 'b': np.int64(2)}, "
            "series={'s': Series(title='s', x=tuple(np.arange(2)), y=tuple(np.ones(2, np.float32)))})"
        )
        score = (
            "return [qpass.Metric(name='m', value=candidate.numbers['a'] / candidate.numbers['b']), "
            "qpass.Metric(name='n', value=np.float32('nan'))]"
        )
        outcome = run(rest=self.REST, plugin=EVALUATOR.format(observe=observe, score=score))
        assert outcome.code == 0, outcome.err
        metrics = json.loads((outcome.out / "report.json").read_text())["metrics"]
        assert [metric["value"] for metric in metrics] == [0.25, None]


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
