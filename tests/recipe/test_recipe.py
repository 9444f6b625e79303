"""Every mistake in a recipe is said at once, by name and with the way out; a good one survives being written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from faults import Change, Data, change, mistakes

from qpass.errors import RecipeError
from qpass.plugins import Catalog
from qpass.recipe import from_data, read

ASSIGN, SIMULATE = ("passes", 0), ("passes", 1)
CASES: dict[str, tuple[Change, str]] = {
    "pass": (lambda d: change(d, *ASSIGN, use="asign"), "passes[1]: unknown pass 'asign', did you mean 'assign'?"),
    "pass of no name": (
        lambda d: d["passes"].append({"rows": 1}),
        'passes[3]: `use` must name one of the passes, as in use = "..."; got None',
    ),
    "pass that is a number": (lambda d: d["passes"].append(5), "passes[3]: must be a table with `use`, not 5"),
    "passes that are no list": (
        lambda d: change(d, passes={"use": "assign"}),
        "passes must be a list of tables, [[passes]], not {'use': 'assign'}",
    ),
    "option": (
        lambda d: change(d, *ASSIGN, wieght="int4 channel"),
        "passes[1] assign: unknown option 'wieght', did you mean 'weight'?",
    ),
    "type": (
        lambda d: change(d, *SIMULATE, rows="many"),
        "passes[2] simulate: rows must be a whole number, not 'many'",
    ),
    "true is no number": (
        lambda d: change(d, *SIMULATE, rows=True),
        "passes[2] simulate: rows must be a whole number, not True",
    ),
    "value": (lambda d: change(d, *SIMULATE, rows=0), "passes[2] simulate: 'rows' must be >= 1: 0"),
    "entry of a list": (
        lambda d: change(d, *ASSIGN, keep=["conv_in", 5]),
        "passes[1] assign: keep[2] must be text, not 5",
    ),
    "text for a list": (
        lambda d: change(d, *ASSIGN, keep="conv_in"),
        "passes[1] assign: keep must be a list, each entry text, not 'conv_in'",
    ),
    "key of a rule": (
        lambda d: change(d, *ASSIGN, rules=[{"match": "*", "wieght": "float"}]),
        "passes[1] assign: rules[1]: unknown option 'wieght', did you mean 'weight'?",
    ),
    "value of a rule": (
        lambda d: change(d, *ASSIGN, rules=[{"match": "*"}, {"match": "*", "weight": "int9 channel"}]),
        "passes[1] assign: rules[2]: weight: 'int9' in 'int9 channel' is not a number format; write <int2..int8|",
    ),
    "number format": (
        lambda d: change(d, *ASSIGN, input="int1 tensor"),
        "passes[1] assign: input: 'int1' in 'int1 tensor' is not a number format; write <int2..int8|",
    ),
    "granularity": (
        lambda d: change(d, *ASSIGN, weight="int4 chanel"),
        "passes[1] assign: weight: 'chanel' in 'int4 chanel' is not a granularity; write <int2..int8|",
    ),
    "word of a quantizer": (
        lambda d: change(d, *ASSIGN, weight="int4 channel signed"),
        "passes[1] assign: weight: 'signed' in 'int4 channel signed' means nothing here; write <int2",
    ),
    "empty quantizer": (
        lambda d: change(d, *ASSIGN, weight=""),
        "passes[1] assign: weight: '' is not a quantizer; ",
    ),
    "weight by time": (
        lambda d: change(d, *ASSIGN, weight="int4 channel time:2"),
        "passes[1] assign: weight: a weight is static, so 'int4 channel time:2' makes no sense for it",
    ),
    "dynamic by time": (
        lambda d: change(d, *ASSIGN, input="int8 tensor dynamic time:2"),
        "passes[1] assign: input: a dynamic scale is computed from each sample, so it takes no time groups",
    ),
    "quantizer": (
        lambda d: change(d, *SIMULATE, weight="absmacks"),
        "passes[2] simulate: weight: unknown quantizer 'absmacks', did you mean 'absmax'?",
    ),
    "option of a quantizer": (
        lambda d: change(d, *SIMULATE, weight={"use": "mse", "nrom": 2.0}),
        "passes[2] simulate: weight mse: unknown option 'nrom', did you mean 'norm'?",
    ),
    "options that do not go together": (
        lambda d: change(d, *SIMULATE, weight={"use": "mse", "shrink": 0.5}),
        "passes[2] simulate: weight mse: 80 steps of 0.5 shrink the range to nothing; lower one of them",
    ),
    "model": (
        lambda d: change(d, model={"use": "cifar10-unnet"}),
        "model: unknown model 'cifar10-unnet', did you mean 'cifar10-unet'",
    ),
    "no model": (lambda d: d.pop("model"), "model: `use` must name one of the models"),
    "option that is required": (
        lambda d: change(d, model={"use": "diffusers"}),
        "model diffusers: option 'path' is required; a folder that `save_pretrained` wrote, or a hub id",
    ),
    "one of a few": (
        lambda d: change(d, "model", dtype="int8"),
        "model cifar10-unet: dtype must be one of 'float32', 'bfloat16', 'float16', not 'int8'",
    ),
    "calibration": (
        lambda d: change(d, "calibration", use="uniform-step"),
        "calibration: unknown analysis 'uniform-step', did you mean 'uniform-steps' or 'normal-steps'?",
    ),
    "evaluator": (
        lambda d: change(d, "evaluators", 0, use="drfit"),
        "evaluators[1]: unknown evaluator 'drfit', did you mean 'drift'?",
    ),
    "evaluator twice": (lambda d: d["evaluators"].append({"use": "size"}), "evaluators: 'size' is listed twice"),
    "evaluator twice by text": (
        lambda d: change(d, evaluators=["size", "size"]),
        "evaluators: 'size' is listed twice",
    ),
    "section": (lambda d: change(d, smapling={}), "unknown section 'smapling', did you mean 'sampling'?"),
    "section that is no table": (
        lambda d: change(d, sampling=3),
        "sampling must be a table, [sampling], not 3",
    ),
    "option of sampling": (
        lambda d: change(d, "sampling", step=3),
        "sampling: unknown option 'step', did you mean 'steps'",
    ),
    "scheduler": (lambda d: change(d, "sampling", scheduler="dimm"), "sampling: 'scheduler' must be in ("),
    "no number": (
        lambda d: change(d, "sampling", guidance=float("nan")),
        "sampling: guidance must be a finite number, not nan",
    ),
    "seed": (lambda d: change(d, seed=-1), "seed must be a whole number from 0 to 2**63 - 1, not -1"),
    "memory": (
        lambda d: change(d, memory_budget="4 gigs"),
        """memory_budget: '4 gigs' is not a size; write it like "500MB" or "4GB\"""",
    ),
    "memory as a number": (
        lambda d: change(d, memory_budget=4),
        """memory_budget: 4 is not a size; write it like "500MB" or "4GB\"""",
    ),
    "order": (
        lambda d: d["passes"].reverse(),
        "passes[1] simulate: needs 'specs', which no pass before it provides; put 'assign' before it",
    ),
    "twice": (
        lambda d: d["passes"].insert(0, {"use": "assign"}),
        "passes[2] assign: cannot come after 'assign', which provides 'specs'; move it before that pass, or remove "
        "one of them",
    ),
    "order by text": (
        lambda d: change(d, passes=["simulate"]),
        "passes[1] simulate: needs 'specs', which no pass before it provides; put 'assign' before it",
    ),
    "presets": (lambda d: change(d, presets=5), "presets must be tables, [presets.NAME], not 5"),
}


@pytest.mark.parametrize(("wrong", "said"), CASES.values(), ids=CASES)
def test_one_mistake(data: Data, known: Catalog, wrong: Change, said: str) -> None:
    """It is said alone, with its place and the way out."""
    wrong(data)
    problems = mistakes(data, known)
    assert problems[0].startswith(said)
    # of two passes that have changed places, each stands in a wrong one
    assert len(problems) == 1 or problems[1].startswith("passes[2] assign: cannot come after 'simulate'")


def test_several_mistakes(data: Data, known: Catalog) -> None:
    """All of them are listed, numbered, whatever section they are in."""
    change(data, *ASSIGN, wieght="int4 channel", input="int99 tensor")
    change(data, *SIMULATE, rows=0, weight="absmacks")
    change(data, model={"use": "unet"}, smapling={}, seed="one")
    problems = mistakes(data, known)
    assert len(problems) == 7
    with pytest.raises(RecipeError) as caught:
        from_data(data, catalog=known, name="mine")
    assert str(caught.value).startswith("recipe 'mine': 7 mistakes\n  1. ")
    assert "\n  7. " in str(caught.value)


def test_what_follows_from_a_mistake_is_none(data: Data, known: Catalog) -> None:
    """A pass that is not known may provide anything, so nothing after it can be missing."""
    change(data, *ASSIGN, use="asign")
    assert mistakes(data, known) == ("passes[1]: unknown pass 'asign', did you mean 'assign'?",)


def test_a_value_is_quoted_in_part(data: Data, known: Catalog) -> None:
    """A mistake takes a line, not a page; a number too long to be written is not written."""
    change(data, seed=["x" * 1000])
    (problem,) = mistakes(data, known)
    assert len(problem) < 200
    change(data, seed=16**5000)
    assert mistakes(data, known) == ("seed must be a whole number from 0 to 2**63 - 1, not this int",)


def test_tables_in_tables(data: Data, known: Catalog) -> None:
    """Depth that no recipe needs is a mistake, not a crash."""
    deep: Data = {}
    data["sampling"] = deep
    for _ in range(5000):
        deep["x"] = deep = {}
    assert mistakes(data, known) == ("its tables are nested too deeply",)


def test_what_an_artifact_cannot_hold(data: Data, known: Catalog) -> None:
    """An artifact holds its recipe as JSON: where that cannot be is said before the run, not after."""
    when = tomllib.loads("x = 2024-01-01")["x"]
    change(data, model={"use": "diffusers", "path": "m", "scheduler": {"since": when}})
    (problem,) = mistakes(data, known)
    assert problem.startswith("a value has no place in an artifact: ")


def test_it_reads_back(data: Data, known: Catalog) -> None:
    """One with rules, lists and quantizers with options."""
    recipe = from_data(data, catalog=known)
    assert from_data(tomllib.loads(recipe.toml()), catalog=known).data() == recipe.data()


def test_simulate_is_appended(data: Data, known: Catalog) -> None:
    """A recipe that assigns and never realises is carried out all the same, and says so."""
    del data["passes"][1]
    recipe = from_data(data, catalog=known)
    assert [step.name for step in recipe.passes] == ["assign", "simulate"]
    assert recipe.notes == ("the recipe ended without `simulate` or `deploy`, so `simulate` was appended",)


class TestFiles:
    """Where a recipe comes from."""

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"seed = = 3", "not valid TOML: "),
            (b"\xff\xfe", "not valid TOML: "),
            (b"seed = " + b"9" * 5000, "not valid TOML: "),
            (b"x = " + b"[" * 5000, "not valid TOML: "),
            (b".".join([b"x"] * 5000) + b" = 1", "its tables are nested too deeply"),
        ],
        ids=["torn", "no text", "digits", "brackets", "dots"],
    )
    def test_no_toml(self, known: Catalog, tmp_path: Path, content: bytes, said: str) -> None:
        """The file is named, with what is wrong with it."""
        file = tmp_path / "r.toml"
        file.write_bytes(content)
        with pytest.raises(RecipeError) as caught:
            read(file, catalog=known)
        assert caught.value.problems[0].startswith(said)

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("w4a88", "unknown recipe 'w4a88', did you mean 'w4a8'"),
            ("no/such.toml", "no such file; name a shipped recipe ("),
            ("x" * 300, "cannot be read: File name too long"),
            (".", "unknown recipe '.', known: "),
        ],
        ids=["typo", "path", "long", "folder"],
    )
    def test_no_file(self, known: Catalog, source: str, said: str) -> None:
        """A name gives the nearest, a path says what to give."""
        with pytest.raises(RecipeError) as caught:
            read(source, catalog=known)
        assert caught.value.problems[0].startswith(said)
