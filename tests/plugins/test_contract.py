"""What every plugin that is installed keeps to, ours and a stranger's alike."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
import numpy as np
import pytest
import tomli_w
import torch
from torch import Tensor
from torch.fx import GraphModule

from qpass.analysis import Analysis
from qpass.artifact import Artifact, load_artifact, save
from qpass.cli.describe import docstring, first_sentence
from qpass.evaluator import EvaluationError, Metric, Subject, check_observation, refuse
from qpass.graph import check_devices, is_compute, sizes
from qpass.graph.names import origins
from qpass.kernels import reference
from qpass.manager import PassContext, PassManager
from qpass.plugins import KINDS, Catalog, catalog
from qpass.quantizer import dequantize, fake_quantize, quantize
from qpass.recipe import from_data, order_problems
from qpass.recipe.structure import Structure, to_data
from qpass.report.data import plain
from qpass.spec import LOGS, parse_spec

KNOWN = catalog()
EVERY = [
    pytest.param(kind, cls, id=f"{kind}-{name}") for kind in KINDS for name, cls in KNOWN.classes[kind].items()
]
# options that must be given, or that keep a test short
GIVEN: dict[str, Any] = {"path": "somewhere", "match": "*", "against": "images.npz"}
REFUSED = ("classifier", "classifier-score", "fd", "inception-score", "lpips")
SHORT: dict[str, Any] = {
    "samples": 4,
    "steps": 2,
    "rows": 4,
    "images": 4,
    "iterations": 2,
    "repeats": 1,
    "warmup": 0,
}


def every(kind: str) -> pytest.MarkDecorator:
    classes = KNOWN.classes[kind]
    return pytest.mark.parametrize("cls", classes.values(), ids=classes.keys())


def fields(cls: Any) -> list[attrs.Attribute[Any]]:
    """The options of a class."""
    return [field for field in attrs.fields(cls) if field.init]


def in_recipes(cls: Any) -> bool:
    """Whether a recipe can name it: what must be handed over in Python is no plain data."""
    return all(f.metadata.get("data", True) or f.default is not attrs.NOTHING for f in fields(cls))


def made(cls: Any, **options: Any) -> Any:
    """An instance, with what must be given."""
    required = {f.name: GIVEN[f.name] for f in fields(cls) if f.default is attrs.NOTHING}
    return cls(**required, **options)


def short(cls: Any) -> Any:
    """An instance that does little."""
    return made(cls, **{f.name: SHORT[f.name] for f in fields(cls) if f.name in SHORT})


def others(value: Any, kind: Any) -> Iterator[Any]:
    """Values of an option that differ from its default; not all of them need be valid."""
    if get_origin(kind) is Literal:
        yield from (choice for choice in get_args(kind) if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value / 2, value * 1.0001, 0.9)
    elif isinstance(value, str):
        yield from ("int5 channel", "linear", "scaled_linear", "other")
    elif isinstance(value, tuple):
        yield (made(get_args(kind)[0]),) if attrs.has(get_args(kind)[0]) else ("a", "b")
    elif isinstance(value, dict):
        yield {"beta_schedule": "linear", "steps": [1, 2.5, True]}


def varied(cls: Any) -> Iterator[Any]:
    """The class with its defaults, then with each of its options set to something else."""
    yield made(cls)
    types = get_type_hints(cls)
    for field in fields(cls):
        if not field.metadata.get("data", True):
            continue
        for value in others(getattr(made(cls), field.name), types[field.name]):
            try:
                yield attrs.evolve(made(cls), **{field.name: type(getattr(made(cls), field.name))(value)})
            except (ValueError, TypeError):
                continue
            break


@pytest.mark.parametrize(("kind", "cls"), EVERY)
class TestEvery:
    """Whatever its kind."""

    def test_name(self, kind: str, cls: Any) -> None:
        """In kebab-case, its own, and the one it is found by."""
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.name)
        assert "name" in vars(cls)
        assert KNOWN.classes[kind][cls.name] is cls

    def test_documented(self, kind: str, cls: Any) -> None:
        """It says what it does in a sentence of its own, and every option says what it is."""
        assert re.fullmatch(r"[A-Z\"|].*[^.]\.", first_sentence(docstring(cls))), docstring(cls)
        for field in fields(cls):
            assert field.metadata.get("help", "").strip(), f"{cls.__name__}.{field.name} has no metadata['help']"
            assert not field.metadata["help"].endswith("."), field.name

    def test_frozen(self, kind: str, cls: Any) -> None:
        """Nothing about it can be changed."""
        if not in_recipes(cls):
            pytest.skip("is made in Python, from a model in memory")
        one = made(cls)
        for field in [*fields(cls), *attrs.fields(type(one))][:5]:
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(one, field.name, None)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            one.anything = 1

    def test_options_by_name(self, kind: str, cls: Any) -> None:
        """Options are given by name alone: their order means nothing."""
        assert all(field.kw_only for field in fields(cls))

    def test_options_there_and_back(self, kind: str, cls: Any) -> None:
        """As plain data, through a TOML file, and back to an equal object, whichever option is set."""
        if not in_recipes(cls):
            pytest.skip("is made in Python, from a model in memory")
        for one in varied(cls):
            structure = Structure(KNOWN)
            back = structure.choose(kind, tomllib.loads(tomli_w.dumps(to_data(one))), "here")
            assert structure.problems == []
            assert back == one
            assert type(back) is cls

    def test_defaults_are_a_recipe(self, kind: str, cls: Any) -> None:
        """A recipe that names it and no more than it must passes the plan check."""
        if not in_recipes(cls):
            pytest.skip("is made in Python, from a model in memory")
        entry = {"use": cls.name, **{f.name: GIVEN[f.name] for f in fields(cls) if f.default is attrs.NOTHING}}
        data: dict[str, Any] = {"model": {"use": "cifar10-unet"}}
        if kind == "passes":
            data["passes"] = [{"use": giver} for giver in before(cls)] + [entry]
        elif kind == "quantizers":
            data["passes"] = [{"use": "assign"}, {"use": "simulate", "weight": entry, "input": entry}]
        elif kind == "evaluators":
            data["evaluators"] = [entry]
        else:
            data[{"models": "model", "analyses": "calibration"}[kind]] = entry
        from_data(data, catalog=KNOWN)


def before(cls: Any) -> list[str]:
    """Names of the passes that must stand before this one, found by what each needs and provides."""
    found: list[str] = []
    for fact in sorted(cls.needs):
        givers = [c for c in KNOWN.classes["passes"].values() if fact in c.provides and not c.needs]
        assert givers, f"no pass provides {fact!r}"
        found += [givers[0].name]
    return found


@every("passes")
class TestPasses:
    """On a real UNet of 8 x 8 images, with attention and seeded weights."""

    def test_class_vars(self, cls: Any) -> None:
        """Facts are words; what it preserves are analyses."""
        for facts in (cls.needs, cls.provides, cls.conflicts):
            assert isinstance(facts, frozenset)
            assert all(re.fullmatch(r"[a-z-]+", fact) for fact in facts)
        assert isinstance(cls.preserves, frozenset)
        assert all(issubclass(analysis, Analysis) for analysis in cls.preserves)
        assert not order_problems([KNOWN.classes["passes"][name] for name in before(cls)] + [cls], KNOWN)

    def test_run(self, cls: Any, context: PassContext, tmp_path: Any) -> None:
        """It takes a well-formed graph to a well-formed one that any device, any batch and an artifact can hold."""
        teacher = fingerprint(context.reference)
        ready = run([made(KNOWN.classes["passes"][name]) for name in before(cls)], context)
        had = {str(n.meta["origin"]) for n in ready.graph.nodes if n.op == "call_module"}
        step = short(cls)
        step.requires(copy.deepcopy(context.reference), context)
        manager = PassManager([step], options=to_data)
        done = manager.run(ready, context)
        graph = done.graph

        graph.graph.lint()
        compute = [n for n in graph.graph.nodes if is_compute(n) and n not in sizes(graph.graph)]
        assert all(n.meta.get("origin") and "stack" in n.meta for n in compute)
        names = [n.meta["origin"] for n in graph.graph.nodes if "origin" in n.meta]
        assert len(names) == len(set(names)), "two nodes have one name"
        assert had <= origins(graph.graph), "a layer has lost its name"
        check_devices(graph, context.model.example(), "cuda")

        for batch in (2, 5):
            inputs = context.model.example(batch)
            with torch.no_grad():
                output = graph(*inputs)
            assert output.shape == inputs[0].shape
            assert torch.isfinite(output).all()
        assert fingerprint(context.reference) == teacher, "the teacher was rewritten"

        (record,) = done.records
        json.dumps(plain(attrs.asdict(record, recurse=False)), allow_nan=False)
        save(Artifact(graph=graph, plan=done.plan), tmp_path / "artifact", KNOWN)
        loaded = load_artifact(tmp_path / "artifact", KNOWN)
        with torch.no_grad():
            assert torch.equal(loaded.graph(*inputs), output)
        assert origins(loaded.graph.graph) == origins(graph.graph)

    def test_the_same_again(self, cls: Any, context: PassContext) -> None:
        """Two runs from one seed give the same weights and the same output."""
        graphs = [
            run([*(made(KNOWN.classes["passes"][name]) for name in before(cls)), short(cls)], context)
            for _ in range(2)
        ]
        assert fingerprint(graphs[0]) == fingerprint(graphs[1])
        inputs = context.model.example()
        with torch.no_grad():
            assert torch.equal(graphs[0](*inputs), graphs[1](*inputs))


def run(passes: list[Any], context: PassContext) -> GraphModule:
    return PassManager(passes).run(copy.deepcopy(context.reference), context).graph


def fingerprint(graph: GraphModule) -> str:
    """All that a graph computes from."""
    state = {name: (tuple(t.shape), float(t.double().sum())) for name, t in graph.state_dict().items()}
    return f"{graph.code}{sorted(state.items())}"


WEIGHT_SPECS = [
    f"{number} {grain}{sign}"
    for number in ("int2", "int4", "int8", "nf4", "log2", "log:8", "fp8-e4m3", "fp8-e5m2")
    for grain in ("tensor", "channel", "group:4")
    for sign in (" sym", " asym")
]
INPUT_SPECS = [
    f"{number} {grain}{time}"
    for number in (
        "int4 tensor",
        "int8 channel",
        "int8 token",
        "int8 group:4",
        "nf4 tensor",
        "log2 token",
        "log-sqrt2 tensor",
    )
    for grain in ("",)
    for time in ("", " time:3")
]


@every("quantizers")
class TestQuantizers:
    """On seeded random values, whatever the granularity, the format and the time groups."""

    @pytest.mark.parametrize("text", WEIGHT_SPECS)
    def test_weights(self, cls: Any, text: str) -> None:
        """One set of parameters for the tensor, each channel or each group, of a weight with a short last group."""
        spec = parse_spec(text, symmetric=True)
        weight = torch.randn(6, 10, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1
        values = reference.arrange(weight, reference.WEIGHT, spec.granularity, spec.group_size)
        params = made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)
        sets = {"tensor": 1, "channel": 6, "group": 18}[spec.granularity]
        well_formed(params, spec, 1, sets)
        codes = quantize(weight, spec, params.tensors, reference.WEIGHT)
        close(dequantize(codes, spec, params.tensors, reference.WEIGHT), weight, spec)

    @pytest.mark.parametrize("text", INPUT_SPECS)
    @pytest.mark.parametrize("batches", [1, 3])
    def test_inputs(self, cls: Any, text: str, batches: int) -> None:
        """One row for each time group, from values that come in several batches and again when asked."""
        spec = parse_spec(text, symmetric=False)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(6, 10, 3, 3, generator=generator) + 0.5
        group = torch.arange(6) % spec.time_groups
        values = reference.arrange(x, reference.CHANNEL_FIRST, spec.granularity, spec.group_size)
        streamed = list(zip(values.chunk(batches), group.chunk(batches), strict=True))
        params = made(cls).fit(lambda: iter(streamed), spec)
        sets = {"tensor": 1, "channel": 10, "token": 9, "group": 3}[spec.granularity]
        well_formed(params, spec, spec.time_groups, sets)
        close(fake_quantize(x, spec, params.tensors, reference.CHANNEL_FIRST, group), x, spec)

    def test_a_group_that_saw_nothing(self, cls: Any) -> None:
        """It takes the parameters of all groups together, so they are finite and not 0."""
        spec = parse_spec("int8 channel time:3", symmetric=False)
        values = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
        params = made(cls).fit(lambda: [(values, torch.tensor([0, 2, 0, 2]))], spec)
        well_formed(params, spec, 3, 5)

    @pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-38, 1e30])
    @pytest.mark.parametrize("text", ["int8 channel sym", "int4 channel asym", "nf4 channel", "log2 channel"])
    def test_values_that_are_all_alike(self, cls: Any, text: str, value: float) -> None:
        """Whatever the value, what comes out is finite."""
        spec = parse_spec(text, symmetric=True)
        values = torch.full((1, 2, 9), value)
        params = made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)
        well_formed(params, spec, 1, 2)
        assert torch.isfinite(fake_quantize(values[0], spec, params.tensors, reference.WEIGHT)).all()

    def test_bits_of_each_channel(self, cls: Any) -> None:
        """A weight may have other bits in every output channel; more of them leave less error."""
        spec = attrs.evolve(parse_spec("int8 channel sym", symmetric=True), bits=(2, 4, 8))
        weight = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
        values = reference.arrange(weight, reference.WEIGHT, "channel", 0)
        params = made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)
        well_formed(params, spec, 1, 3)
        rounded = dequantize(
            quantize(weight, spec, params.tensors, reference.WEIGHT), spec, params.tensors, reference.WEIGHT
        )
        errors = (rounded - weight).square().mean(1)
        assert errors[0] > errors[1] > errors[2]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_values_that_no_range_fits(self, cls: Any, bad: float) -> None:
        """A ValueError, which `simulate` turns into a sentence with the layer's name."""
        values = torch.ones(1, 2, 9)
        values[0, 1, 3] = bad
        spec = parse_spec("int8 channel", symmetric=True)
        with pytest.raises(ValueError):
            made(cls).fit(lambda: [(values, torch.zeros(1, dtype=torch.long))], spec)

    def test_no_values(self, cls: Any) -> None:
        """So is nothing at all."""
        with pytest.raises(ValueError):
            made(cls).fit(list, parse_spec("int8 tensor", symmetric=True))


def well_formed(params: Any, spec: Any, groups: int, sets: int) -> None:
    """Parameters have the shapes that the contract promises, and are usable."""
    assert params.kind == spec.kind
    tensors = dict(params.tensors)
    assert tensors["scale"].shape == (groups, sets)
    assert (tensors["scale"] > 0).all()
    if spec.kind == "affine":
        assert set(tensors) == {"scale", "zero"}
        assert tensors["zero"].shape == (groups, sets)
        assert torch.equal(tensors["zero"], tensors["zero"].round())
    else:
        assert set(tensors) == {"scale", "thresholds", "table"}
        (levels,) = tensors["table"].shape
        assert levels <= 256
        assert tensors["thresholds"].shape == (levels - 1,)
        assert (tensors["table"].diff() > 0).all()
        assert (
            (tensors["table"][:-1] < tensors["thresholds"]) & (tensors["thresholds"] < tensors["table"][1:])
        ).all()
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in tensors.values())


def close(rounded: Tensor, x: Tensor, spec: Any) -> None:
    """What is rounded is finite, and loses less than it keeps where its format holds numbers of both signs."""
    assert torch.isfinite(rounded).all()
    if spec.format in LOGS and not spec.symmetric:
        return  # magnitudes only: made for softmax outputs
    assert (rounded - x).square().mean() < x.square().mean()


@every("analyses")
class TestAnalyses:
    """Questions about a model."""

    def test_equal_questions(self, cls: Any) -> None:
        """Are equal, and have equal hashes, so that they are asked once."""
        assert made(cls) == made(cls)
        assert hash(made(cls)) == hash(made(cls))

    def test_class_vars(self, cls: Any) -> None:
        """It says what it is asked of; what is kept on disk is about the original."""
        assert cls.of in ("reference", "graph")
        assert isinstance(cls.stored, bool)

    def test_the_answer_keeps(self, cls: Any, context: PassContext) -> None:
        """What is stored and read back is what was computed; the same seed computes the same."""
        question = short(cls)
        graph = context.reference
        first, again = (question.compute(graph, context) for _ in range(2))
        if not cls.stored:
            return
        tensors, twice = question.dump(first), question.dump(again)
        assert all(torch.equal(tensors[name], twice[name]) for name in tensors | twice)
        back = question.dump(question.restore(tensors))
        assert all(torch.equal(tensors[name], back[name]) for name in tensors | back)


@every("models")
class TestModels:
    """Sources of models, those of them that need no more than what ships."""

    @pytest.fixture
    def model(self, cls: Any, unet_folder: Any) -> Any:
        if cls.name == "diffusers":
            return cls(path=str(unet_folder))
        if not in_recipes(cls) or any(f.default is attrs.NOTHING for f in fields(cls)):
            pytest.skip("needs a model that does not ship")
        return cls()

    def test_shape_without_weights(self, model: Any) -> None:
        """The skeleton has the parameters of the loaded module, without their memory."""
        full, bare = model.load(), model.skeleton()
        assert {n: (p.shape, p.dtype) for n, p in full.named_parameters()} == {
            n: (p.shape, p.dtype) for n, p in bare.named_parameters()
        }
        assert all(p.is_meta for p in bare.parameters())
        assert not any(p.is_meta for p in full.parameters())
        assert not full.training
        assert not bare.training

    def test_example(self, model: Any) -> None:
        """Seeded inputs, of any batch, that the module takes."""
        for batch in (1, 3):
            inputs, again = model.example(batch), model.example(batch)
            assert all(torch.equal(a, b) for a, b in zip(inputs, again, strict=True))
            with torch.no_grad():
                output = model.call(model.load(), *inputs)
            assert output.shape[0] == batch
        dims = model.dynamic()
        assert dims is None or len(dims) == len(inputs)

    def test_plain_data(self, model: Any) -> None:
        """What travels in artifacts is JSON; the fingerprint is the same each time."""
        for data in (dict(model.config()), model.signature()):
            assert json.loads(json.dumps(data)) == plain(data)
        assert isinstance(model.fingerprint(), str)
        assert model.fingerprint() == model.fingerprint()

    def test_sampling(self, model: Any, context: PassContext) -> None:
        """Either it says why it cannot be sampled from, or images come out; the same each time."""
        if reason := model.cannot_sample():
            assert isinstance(reason, str)
            return
        module = model.load()

        def draw() -> Tensor:
            sampling = attrs.evolve(context.sampling, steps=2)
            with torch.no_grad():
                return torch.cat(list(model.sample(
                    lambda *inputs: model.call(module, *inputs), seed=0, count=2, sampling=sampling,
                    device=torch.device("cpu"),
                )))  # fmt: skip

        images = draw()
        assert images.dtype == torch.uint8
        assert (images.shape[0], images.shape[3]) == (2, 3)
        assert torch.equal(images, draw())


@pytest.fixture(scope="module")
def quantized(traced: Any, catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny UNet with its weights rounded, and its artifact."""
    from qpass_passes.assign import Assign
    from qpass_passes.simulate import Simulate

    adapter, graph = traced
    ctx = PassContext(model=adapter, reference=graph, sampling=None, calibration=None, catalog=catalog)  # type: ignore[arg-type]
    done = run([Assign(weight="int4 channel", input="float", edge_input="float"), Simulate()], ctx)
    folder = tmp_path_factory.mktemp("subject") / "artifact"
    save(Artifact(graph=done), folder, catalog)
    return Subject(role="quantized", graph=done, folder=folder)


@every("evaluators")
class TestEvaluators:
    """Measures of a model."""

    def test_class_vars(self, cls: Any) -> None:
        """It says what it needs, and whether equal runs give equal values."""
        assert cls.needs in ("images", "model")
        assert isinstance(cls.exact, bool)

    def test_it_refuses_or_measures(
        self, cls: Any, context: PassContext, quantized: Subject, tmp_path: Path
    ) -> None:
        """Observations are well-formed and survive a merge; metrics are numbers with all that determines them."""
        np.savez(tmp_path / "eight.npz", arr_0=np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8))
        evaluator = short(cls)
        if "against" in attrs.fields_dict(cls):
            evaluator = attrs.evolve(evaluator, against=str(tmp_path / "eight.npz"))
        context = attrs.evolve(context, scratch=tmp_path)
        if cls.name in REFUSED:  # no weights, other images, or too few
            original = Subject(role="original", graph=context.reference)
            with pytest.raises(EvaluationError):  # noqa: PT012
                seen = evaluator.observe(original, context)
                evaluator.score(evaluator.observe(quantized, context), seen)
            return
        refuse(evaluator, context.model)
        original = Subject(role="original", graph=context.reference)
        with torch.no_grad():
            theirs, ours = (evaluator.observe(subject, context) for subject in (original, quantized))
        for seen in (theirs, ours):
            check_observation(evaluator, seen)
            assert seen.merge(type(seen)()).numbers == seen.numbers
        metrics = evaluator.score(ours, theirs)
        assert metrics
        for metric in metrics:
            assert isinstance(metric, Metric)
            assert re.fullmatch(r"[a-z0-9_]+", metric.name)
            assert metric.better in ("higher", "lower")
            json.dumps(plain(attrs.asdict(metric)), allow_nan=False)
        assert evaluator.score(ours, None) is not None
