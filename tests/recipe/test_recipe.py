"""Every mistake in a recipe is said at once, by name and with the way out; a good one survives being written."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import tomli_w
from attrs import validators as v
from qpass_passes.quantizers.mse import Mse

from qpass.errors import RecipeError
from qpass.plugins import Catalog
from qpass.quantizer import Quantizer
from qpass.recipe import from_data, read, shipped
from qpass.recipe.override import parse_assignment
from qpass.recipe.structure import Structure, to_data

Data = dict[str, Any]
Change = Callable[[Data], Any]


def mistakes(data: Data, known: Catalog, **rest: Any) -> tuple[str, ...]:
    """What is wrong with a recipe."""
    with pytest.raises(RecipeError) as caught:
        from_data(data, catalog=known, **rest)
    return caught.value.problems


def change(data: Data, *path: str | int, **fields: Any) -> None:
    """Set fields of a table somewhere in a recipe."""
    for key in path:
        data = data[key]
    data.update(fields)


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


class TestSet:
    """`--set KEY=VALUE`."""

    @pytest.mark.parametrize(
        ("text", "path", "value"),
        [
            ("sampling.steps=5", ("sampling", "steps"), 5),
            (" sampling . steps = 5 ", ("sampling", "steps"), 5),
            ("a.b=[1, 2]", ("a", "b"), [1, 2]),
            ("a.b={c = 1.5}", ("a", "b"), {"c": 1.5}),
            ("a.b=true", ("a", "b"), True),
            ("a.b='x'", ("a", "b"), "x"),
            ("a.b=int4 channel", ("a", "b"), "int4 channel"),
            ("a.b=c=d", ("a", "b"), "c=d"),
            ("a.b=", ("a", "b"), ""),
            ("a.b=1\nc = 2", ("a", "b"), "1\nc = 2"),
            ("a.b=" + "9" * 5000, ("a", "b"), "9" * 5000),
        ],
    )
    def test_values(self, text: str, path: tuple[str, ...], value: Any) -> None:
        """A value is TOML; what is not is text."""
        assert parse_assignment(text) == (path, value)

    def test_a_pass_by_name(self, data: Data, known: Catalog) -> None:
        """`#2` is the second of that name."""
        data["passes"] = [{"use": "simulate", "rows": 1}, {"use": "assign"}, {"use": "simulate", "rows": 2}]
        problems = mistakes(
            data,
            known,
            overrides=["passes.simulate.rows=x", "passes.simulate#2.rows=y", "passes.simulate#3.rows=z"],
        )
        assert (
            "--set passes.simulate#3.rows: the recipe has no 'simulate#3' in passes, did you mean" in problems[0]
        )
        assert "passes[1] simulate: rows must be a whole number, not 'x'" in problems
        assert "passes[3] simulate: rows must be a whole number, not 'y'" in problems

    def test_a_pass_named_by_text_alone(self, data: Data, known: Catalog) -> None:
        """What is written the short way has options too."""
        data["passes"] = ["assign", "simulate"]
        recipe = from_data(data, catalog=known, overrides=["passes.simulate.rows=7"])
        assert to_data(recipe.passes[1])["rows"] == 7

    @pytest.mark.parametrize(
        "overrides",
        [
            ["passes.simulate.input.use=percentile", "passes.simulate.input.q=0.9"],
            ["passes.simulate.input.q=0.9", "passes.simulate.input.use=percentile"],
            ["passes.simulate.input=percentile", "passes.simulate.input.q=0.9"],
            ["passes.simulate.input={use = 'percentile', q = 0.9}"],
        ],
        ids=" ".join,
    )
    def test_another_plugin_takes_the_place_of_one(self, data: Data, known: Catalog, overrides: list[str]) -> None:
        """The options of the one before go; those given beside the new name stay, in whatever order."""
        recipe = from_data(data, catalog=known, overrides=overrides)
        assert to_data(recipe.passes[1])["input"] == {"use": "percentile", "q": 0.9}

    def test_an_option_of_every_pass_that_has_it(self, data: Data, known: Catalog) -> None:
        """A star is any pass with that option, each of its place; later changes count as ever."""
        learning = [{"use": "brecq"}, {"use": "learn-steps", "batch": 3}, {"use": "brecq"}]
        data["passes"] = ["assign", *learning, {"use": "simulate"}]
        recipe = from_data(data, catalog=known, overrides=["passes.*.batch=8", "passes.brecq#2.batch=9"])
        assert [to_data(step).get("batch") for step in recipe.passes] == [None, 8, 8, 9, None]
        data["passes"] = ["assign", "simulate"]
        assert from_data(data, catalog=known, overrides=["passes.*.batch=8"]).data() == (
            from_data(data, catalog=known).data()
        ), "one command for many recipes: those without the option stay as they are"

    def test_an_option_of_another_evaluator_adds_it(self, data: Data, known: Catalog) -> None:
        """Evaluators have no order, so it says all there is to say; those that are there stay."""
        before = [e.name for e in from_data(data, catalog=known).evaluators]
        recipe = from_data(
            data, catalog=known, overrides=["evaluators.latency.batch=3", "evaluators.latency.warmup=1"]
        )
        assert [e.name for e in recipe.evaluators] == [*before, "latency"]
        assert to_data(recipe.evaluators[-1]) == {"use": "latency", "batch": 3, "repeats": 5, "warmup": 1}
        del data["evaluators"]
        assert [
            e.name for e in from_data(data, catalog=known, overrides=["evaluators.cost.use=cost"]).evaluators
        ] == ["cost"]
        data["evaluators"] = 5
        assert len(mistakes(data, known, overrides=["evaluators.latency.batch=3"])) == 2

    def test_another_model(self, data: Data, known: Catalog) -> None:
        """Options of the model before do not follow."""
        data["model"] = {"use": "diffusers", "path": "somewhere"}
        recipe = from_data(data, catalog=known, overrides=["model.use=cifar10-dit"])
        assert recipe.model.name == "cifar10-dit"

    def test_the_same_model_keeps_its_options(self, data: Data, known: Catalog) -> None:
        """Naming what is there already changes nothing."""
        data["model"]["dtype"] = "bfloat16"
        recipe = from_data(data, catalog=known, overrides=["model.use=cifar10-unet"])
        assert to_data(recipe.model) == {"use": "cifar10-unet", "dtype": "bfloat16"}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("steps", "--set 'steps': write KEY=VALUE, as in --set sampling.steps=50"),
            ("a..b=1", "--set 'a..b=1': write KEY=VALUE"),
            ("passes=[]", "--set passes: say which option, as in passes.NAME.OPTION=VALUE"),
            ("passes.assign=1", "--set passes.assign: say which option"),
            (
                "passes.simulat.rows=1",
                "--set passes.simulat.rows: the recipe has no 'simulat' in passes, did you mean",
            ),
            (
                "evaluators.dirft.samples=1",
                "--set evaluators.dirft.samples: the recipe has no 'dirft' in evaluators, did you mean 'drift'?",
            ),
            ("passes.*.bacth=1", "--set passes.*.bacth: no pass has the option 'bacth', did you mean 'batch'?"),
            ("passes.*=1", "--set passes.*: say which option"),
            ("evaluators.cost#2.x=1", "--set evaluators.cost#2.x: the recipe has no 'cost#2' in evaluators"),
            ("seed.x=1", "--set seed.x: 'seed' is not a table"),
            ("use=cifar10-dit", "unknown section 'use'"),
            ("presets.fast.seed=1", "--set presets.fast.seed: a preset is chosen with --preset, not changed"),
            ("smapling.steps=1", "unknown section 'smapling', did you mean 'sampling'?"),
        ],
    )
    def test_what_cannot_be_set(self, data: Data, known: Catalog, text: str, said: str) -> None:
        """One mistake, and the rest of the recipe is as it was."""
        (problem,) = mistakes(data, known, overrides=[text])
        assert problem.startswith(said)

    @pytest.mark.parametrize("passes", [5, "assign", {"use": "assign"}, None, [5]])
    def test_passes_that_are_none(self, data: Data, known: Catalog, passes: Any) -> None:
        """There is no such pass to change where there are no passes."""
        data["passes"] = passes
        assert "the recipe has no 'assign' in passes" in mistakes(data, known, overrides=["passes.assign.x=1"])[0]


class TestPresets:
    """`--preset NAME`."""

    def test_it_is_applied_before_set(self, data: Data, known: Catalog) -> None:
        """So --set has the last word."""
        recipe = from_data(data, catalog=known, preset="fast", overrides=["passes.simulate.rows=17"])
        assert (recipe.sampling.steps, to_data(recipe.passes[1])["rows"]) == (5, 17)

    def test_another_model_with_its_options(self, data: Data, known: Catalog) -> None:
        """An option that stands before the new model's `use` is the new model's."""
        recipe = from_data(data, catalog=known, preset="transformer")
        assert to_data(recipe.model) == {"use": "cifar10-dit", "dtype": "bfloat16"}

    def test_a_quantizer_as_a_table(self, data: Data, known: Catalog) -> None:
        """Whatever order its keys stand in."""
        data["presets"]["q"] = {"passes": {"simulate": {"weight": {"q": 0.9, "use": "percentile"}}}}
        recipe = from_data(data, catalog=known, preset="q")
        assert to_data(recipe.passes[1])["weight"] == {"use": "percentile", "q": 0.9}

    def test_one_that_is_not_there(self, data: Data, known: Catalog) -> None:
        """The nearest name is given."""
        assert mistakes(data, known, preset="fsat") == ("unknown preset 'fsat', did you mean 'fast'?",)

    def test_where_there_are_none(self, data: Data, known: Catalog) -> None:
        """And said so where there is none at all."""
        del data["presets"]
        assert mistakes(data, known, preset="fast") == ("unknown preset 'fast', known: none",)

    def test_a_mistake_in_it(self, data: Data, known: Catalog) -> None:
        """It is the preset's name that is given as the source."""
        data["presets"]["fast"] = {"passes": {"brecq": {"iterations": 1}}}
        (problem,) = mistakes(data, known, preset="fast")
        assert problem.startswith("preset fast: passes.brecq.iterations: the recipe has no 'brecq' in passes, ")


class TestShipped:
    """The recipes that come with qpass."""

    @pytest.mark.parametrize("name", shipped())
    def test_it_checks(self, known: Catalog, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a mistake, and with every preset it has; one of them reads a file of captions."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "captions.txt").write_text("a cat", encoding="utf-8")
        assert read(name, catalog=known).notes == ()
        for preset in tomllib.loads(shipped()[name].read_text()).get("presets", {}):
            read(name, catalog=known, preset=preset)

    @pytest.mark.parametrize(
        ("name", "file"),
        [("brecq-w3a6", "brecq-w4a8"), ("w2a2", "w4a4"), ("tfmq-w6a6", "tfmq-w4a8"), ("rtn-w5a8", "rtn-w4a8")],
    )
    def test_a_method_can_be_had_at_any_bits(self, known: Catalog, name: str, file: str) -> None:
        """The file of the nearest bits, the bits of weights first, and nothing else changed; it says so."""
        found, other = read(name, catalog=known), read(file, catalog=known)
        weight, given = int(name[-3]), int(name[-1])
        assert found.name == name
        assert found.notes == (f"{file} with weights of {weight} and inputs of {given} bits",)
        step, theirs = found.passes[0], other.passes[0]
        assert (step.weight, step.input) == (f"int{weight} channel", f"int{given} tensor")
        assert attrs.evolve(step, weight=theirs.weight, input=theirs.input) == theirs
        assert found.passes[1:] == other.passes[1:]
        assert found.data() | {"passes": []} == other.data() | {"passes": []}

    @pytest.mark.parametrize("name", ["brecq-w1a8", "brecq-w9a8", "nothing-w4a8", "brecq", "-w3a3", "w4a4-w3a3"])
    def test_other_names_are_unknown(self, known: Catalog, name: str) -> None:
        """Bits from 2 to 8, of a method that ships."""
        with pytest.raises(RecipeError, match="unknown recipe"):
            read(name, catalog=known)

    @pytest.mark.parametrize("name", shipped())
    def test_it_takes_another_model(self, known: Catalog, name: str) -> None:
        """Nothing in it is for one model only."""
        assert read(name, catalog=known, overrides=['model.use="cifar10-dit"']).model.name == "cifar10-dit"

    @pytest.mark.parametrize("name", shipped())
    def test_it_reads_back(self, known: Catalog, name: str) -> None:
        """What is written into a run's folder is the same recipe."""
        recipe = read(name, catalog=known)
        again = from_data(tomllib.loads(recipe.toml()), catalog=known)
        assert again.data() == recipe.data()
        assert again.passes == recipe.passes
        assert again.toml() == recipe.toml()


def test_it_reads_back(data: Data, known: Catalog) -> None:
    """So does one with rules, lists and quantizers with options."""
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


class Colour(Enum):
    """An option of a few values, as some like to write it."""

    RED = "red"
    BLUE = "blue"


@attrs.frozen(kw_only=True)
class Inner:
    """A table in a table."""

    depth: int = attrs.field(default=1, validator=v.ge(1))


@attrs.frozen(kw_only=True)
class Everything:
    """Every kind of option a plugin may have."""

    text: str = "x"
    number: float = 1.0
    colour: Colour = Colour.RED
    side: Literal["left", "right"] = "left"
    maybe: int | None = None
    path: Path = Path("a/b")
    names: frozenset[str] = frozenset({"b", "a"})
    pair: tuple[int, int] = (1, 2)
    inner: Inner = attrs.field(factory=Inner)
    inners: tuple[Inner, ...] = ()
    quantizer: Quantizer | None = None
    quantizers: list[Quantizer] = attrs.field(factory=list)
    table: dict[str, float] = attrs.field(factory=dict)
    low: int = 0
    high: int = attrs.field(default=1)
    _private: int = 0
    converted: tuple[str, ...] = attrs.field(default=(), converter=tuple, validator=v.instance_of(tuple))

    @high.validator
    def _above(self, attribute: attrs.Attribute[int], value: int) -> None:
        """Looks at another option, so it cannot be asked alone."""
        if value <= self.low:
            raise ValueError(f"high must be above low, {self.low}, not {value}")


class TestStructure:
    """Tables as objects, and back."""

    @pytest.mark.parametrize(
        "made",
        [
            Everything(),
            Everything(
                text="é\n", number=2, colour=Colour.BLUE, side="right", maybe=5, path=Path("/"),
                names=frozenset(), pair=(3, 4), inner=Inner(depth=2), inners=(Inner(), Inner(depth=3)),
                quantizer=Mse(norm=2.0), quantizers=[Mse()], table={"a": 1.5}, low=3, high=4, private=7,
                converted=("z",),
            ),
        ],
        ids=["defaults", "all set"],
    )  # fmt: skip
    def test_there_and_back(self, known: Catalog, made: Everything) -> None:
        """Plain data that TOML can hold, and from it an equal object."""
        structure = Structure(known)
        plain = tomllib.loads(tomli_w.dumps(to_data(made)))
        assert structure.build(Everything, plain, "here") == made
        assert structure.problems == []

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"colour": "green"}, "here: colour must be one of 'red', 'blue', not 'green'"),
            ({"side": "up"}, "here: side must be one of 'left', 'right', not 'up'"),
            ({"maybe": "x"}, "here: maybe must be a whole number, not 'x'"),
            ({"names": "ab"}, "here: names must be a list, each entry text, not 'ab'"),
            ({"pair": [1]}, "here: pair must be a list, each entry a whole number, not [1]"),
            ({"inner": 5}, "here: inner must be a table, not 5"),
            ({"inner": {"depth": 0}}, "here: inner: 'depth' must be >= 1: 0"),
            ({"inners": [{}, {"depht": 1}]}, "here: inners[2]: unknown option 'depht', did you mean 'depth'?"),
            ({"quantizer": "mes"}, "here: quantizer: unknown quantizer 'mes', did you mean 'mse'?"),
            ({"quantizers": ["mse", "mes"]}, "here: quantizers[2]: unknown quantizer 'mes', did you mean 'mse'?"),
            ({"table": {"a": "b"}}, "here: table must be a table, each value a finite number, not {'a': 'b'}"),
            ({"low": 5}, "here: high must be above low, 5, not 1"),
            ({"number": float("inf")}, "here: number must be a finite number, not inf"),
            ({"_private": 1}, "here: unknown option '_private', did you mean 'private'"),
        ],
        ids=str,
    )
    def test_what_is_wrong(self, known: Catalog, options: Data, said: str) -> None:
        """One sentence with the place, the rule and the value."""
        structure = Structure(known)
        assert structure.build(Everything, options, "here") is None
        (problem,) = structure.problems
        assert problem.startswith(said)
