"""What determines a result: if none of it changed, neither did the result."""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import attrs
from torch._ops import OpOverload
from torch.fx import GraphModule

from qpass.analysis import Analysis
from qpass.artifact.ops import Ops
from qpass.evaluator import Evaluator
from qpass.model import ModelAdapter
from qpass.quantizer import Quantizer
from qpass.recipe import Recipe, bytes_of
from qpass.recipe.structure import to_data
from qpass.report.data import plain
from qpass.source import home, source_hash

LIBRARIES = ("torch", "diffusers", "timm", "numpy", "pillow", "safetensors")
OPTIONAL = ("transformers",)  # what encodes prompts
_PROCESS = uuid.uuid4().hex


def digest(value: Any) -> str:
    """A short hash of plain data."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    found = {name: version(name) for name in ("qpass", *LIBRARIES)}
    for name in OPTIONAL:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {"python": platform.python_version(), **found}


def ground(recipe: Recipe, device: str) -> dict[str, Any]:
    """What every stage depends on."""
    code = {"qpass": source_hash("qpass")}
    for part in (recipe.model, recipe.calibration):
        code |= own_code(part)
    return {
        "code": code,
        "versions": versions(),
        "device": device,
        "seed": recipe.seed,
        "model": {**to_data(recipe.model), "weights": recipe.model.fingerprint()},
        "sampling": to_data(recipe.sampling),
        "calibration": to_data(recipe.calibration),
    }


def trace_print(model: ModelAdapter, base: Mapping[str, Any]) -> str:
    """The fingerprint of the traced original: neither sampling nor seed has a say in it."""
    code = {"qpass": base["code"]["qpass"], **own_code(model)}
    return digest({"code": code, "versions": base["versions"], "model": base["model"]})


def facts(recipe: Recipe, base: Mapping[str, Any]) -> dict[str, Any]:
    """All that a run's folder depends on, under the names `--set` has for it, so that a change can be named."""
    named: dict[str, Any] = {**base, "memory_budget": recipe.memory_budget}
    for kind, plugins in (("passes", recipe.passes), ("evaluators", recipe.evaluators)):
        seen: Counter[str] = Counter()
        named[kind] = {"": [plugin.name for plugin in plugins]}
        for plugin in plugins:
            seen[plugin.name] += 1
            label = plugin.name if seen[plugin.name] == 1 else f"{plugin.name}#{seen[plugin.name]}"
            named[kind][label] = to_data(plugin)
            if isinstance(plugin, Evaluator) and (files := plugin.fingerprint()):
                named[kind][f"{label} (its files)"] = files
            named["code"] = {**named["code"], **own_code(plugin)}
    return dict(_dotted(named))


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{prefix}.{key}".strip(".")
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, name)
        else:
            yield name, value


def own_code(plugin: Any) -> dict[str, str]:
    """The code versions of the packages that a plugin, and the plugins among its options, come from."""
    found = _code(type(plugin))
    for field in attrs.fields(type(plugin)):
        value = getattr(plugin, field.name)
        if isinstance(value, Quantizer | Analysis):
            found |= own_code(value)
    return found


def ops_code(graph: GraphModule, ops: Ops) -> dict[str, str]:
    """The code versions of what plugins have in a graph: it names their functions and holds none of their code."""
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    found: dict[str, str] = {}
    for function, _ in ops.values():
        if function in called and not isinstance(function, OpOverload):
            found |= _code(function)
    return found


def _code(thing: Any) -> dict[str, str]:
    """The code version of the outermost package or module with a file that a class or function comes from."""
    if (named := home(thing.__module__)) is None:
        # typed at a prompt: nothing made with an earlier version of it may be taken for up to date
        return {thing.__module__.partition(".")[0]: f"{_PROCESS}-{id(thing)}"}
    return {named: source_hash(named)}


def stage_prints(recipe: Recipe, base: Mapping[str, Any]) -> list[str]:
    """One fingerprint for each pass, of everything up to and including it.

    The memory budget is part of it: what does not fit is kept on disk in half precision.
    """
    prints, last = [], digest({"base": base, "memory_budget": bytes_of(recipe.memory_budget)})
    for step in recipe.passes:
        last = digest({"before": last, "pass": to_data(step), "code": own_code(step)})
        prints.append(last)
    return prints
