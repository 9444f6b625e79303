"""`--set KEY=VALUE` and `--preset NAME` change a recipe, or say what is wrong with the change."""

from __future__ import annotations

from typing import Any

import pytest
from faults import Data, mistakes

from qpass.plugins import Catalog
from qpass.recipe import from_data
from qpass.recipe.override import parse_assignment
from qpass.recipe.structure import to_data


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

    @pytest.mark.parametrize(
        "overrides",
        [
            ["passes.simulate.use=brecq", "passes.simulate.batch=7"],
            ["passes.simulate.batch=7", "passes.simulate.use=brecq"],
            ["passes.brecq.batch=7", "passes.simulate.use=brecq"],
            ["passes.*.batch=7", "passes.simulate.use=brecq"],
        ],
        ids=" ".join,
    )
    def test_another_pass_takes_the_place_of_one(self, data: Data, known: Catalog, overrides: list[str]) -> None:
        """An option beside the new name is the new pass's, before it or after, by the old name or the new."""
        recipe = from_data(data, catalog=known, overrides=overrides)
        assert to_data(recipe.passes[1])["use"] == "brecq"
        assert to_data(recipe.passes[1])["batch"] == 7

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
