"""Write and read an artifact's folder."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

from qpass.artifact.graph_json import dotted, empty_module, graph_from_json, graph_to_json
from qpass.artifact.pack import pack, unpack
from qpass.errors import ArtifactError
from qpass.files import UNFINISHED, checksum, new_folder, sha256, storage
from qpass.plugins import Catalog
from qpass.quantizer import dequantize
from qpass.schedule import Step, StepPlan
from qpass.slots import Slot, read_params, slots, spec_of

VERSION = 1
WEIGHTS, GRAPH = "model.safetensors", "qpass.json"


@attrs.frozen(kw_only=True, eq=False)
class Artifact:
    """What an artifact holds: the graph, the plan for sampling it, and plain data about where it comes from.

    `digest` stands for all of it, of one that was read from a folder: two are equal where their digests are.
    """

    graph: GraphModule
    plan: StepPlan | None = None
    about: Mapping[str, Any] = attrs.field(factory=dict)
    digest: str = ""


def save(artifact: Artifact, folder: Path, catalog: Catalog) -> None:
    """Write the artifact; the folder appears whole or not at all. Equal artifacts make equal bytes."""
    tensors, names = _tensors(artifact.graph)
    with new_folder(folder) as aside:
        save_tensors(tensors, aside / WEIGHTS)
        graph = graph_to_json(artifact.graph, catalog.ops)
        document = {
            "qpass": VERSION,
            "weights": sha256(aside / WEIGHTS),
            "about": artifact.about,
            "plan": attrs.asdict(artifact.plan)["steps"] if artifact.plan else None,
            "graph": graph,
            "plugins": sorted({catalog.ops[name][1] for name in graph["targets"] if name in catalog.ops}),
            **names,
        }
        document = json.loads(_text(document))  # keys are text from here on
        document["checksum"] = checksum(document)
        (aside / GRAPH).write_text(_text(document), encoding="utf-8")


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all; what the disk refuses is a `StorageError`."""
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{UNFINISHED}{path.name}")
        try:
            save_file(tensors, aside, metadata={"format": "qpass"})
            aside.chmod(0o644)  # safetensors writes for its owner alone; an artifact is for whoever runs it
            with aside.open("rb") as opened:
                os.fsync(opened.fileno())
            aside.replace(path)
        except SafetensorError as error:
            # safetensors hides the system's number in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
        finally:
            aside.unlink(missing_ok=True)


def load_artifact(folder: Path, catalog: Catalog) -> Artifact:
    """Read an artifact back, checked against its hashes."""
    file = str(folder / GRAPH)
    document, tensors = _read(folder)
    try:
        graph = _rebuild(document, tensors, catalog)
        plan = document["plan"]
        steps = StepPlan(steps=tuple(Step(**step) for step in plan)) if plan else None
        return Artifact(graph=graph, plan=steps, about=dict(document["about"]), digest=document["checksum"])
    except ArtifactError as error:
        raise ArtifactError(f"{file!r} cannot be loaded: {error}") from error
    except _MALFORMED as error:
        raise ArtifactError(f"{file!r} is malformed ({type(error).__name__}: {error}); {_CURE}") from error


# what a document of the wrong shape, or with wrong values, runs into
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
_CURE = "copy it again, or make it again with `qpass run`"


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Both files, once they are known to be whole and to belong together."""
    for name in (GRAPH, WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactError(
                f"{str(folder)!r} is no artifact: it holds no {name}; give the folder `qpass run` wrote"
            )
    graph, weights = folder / GRAPH, folder / WEIGHTS
    try:
        document = json.loads(graph.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ArtifactError(f"{str(graph)!r} cannot be read ({error}); {_CURE}") from error
    if not isinstance(document, dict) or "qpass" not in document:
        raise ArtifactError(f"{str(graph)!r} does not say which format it has; {_CURE}")
    if (version := document["qpass"]) != VERSION:
        raise ArtifactError(
            f"{str(graph)!r} has format {version!r}, this qpass reads format {VERSION}; install a newer one"
        )
    if document.get("checksum") != checksum(document):
        raise ArtifactError(f"{str(graph)!r} was changed after it was written; {_CURE}")
    try:
        if sha256(weights) != document.get("weights"):
            raise ArtifactError(f"{str(weights)!r} is not the file this artifact was written with; {_CURE}")
        return document, load_file(weights)
    except (SafetensorError, OSError, *_MALFORMED) as error:
        raise ArtifactError(f"{str(weights)!r} cannot be read ({error}); {_CURE}") from error


def state(graph: GraphModule) -> dict[str, Tensor]:
    """The tensors that an artifact has to hold: parameters that some node uses, and every buffer."""
    parameters = dict(graph.named_parameters(remove_duplicate=False))
    used = {str(n.target) for n in graph.graph.nodes if n.op in ("get_attr", "call_module")}
    found = {
        name: tensor for name, tensor in parameters.items() if name in used or name.rpartition(".")[0] in used
    }
    return {**found, **dict(graph.named_buffers(remove_duplicate=False))}


def _tensors(graph: GraphModule) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors to store, and how to read them: packed codes in place of weights, shared tensors once."""
    parameters = {name for name, _ in graph.named_parameters(remove_duplicate=False)}
    read = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    held = state(graph)
    packed: dict[str, list[Any]] = {}
    for slot in slots(graph):
        codes = held.get(f"{slot.home}.codes")
        # until a weight is rounded for good it is still the original, which what comes after learns from
        if slot.index < 0 and codes is not None and realised(slot):
            weight = held[name := slot.home.removesuffix("_q")]
            if name not in read:
                del held[name]
            packed[slot.home] = [str(weight.dtype).removeprefix("torch."), *codes.shape]
            held[f"{slot.home}.codes"] = pack(codes, slot.spec.widest)
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    for name in sorted(held):
        tensor = held[name]
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and first.setdefault(key, name) != name:
            shared[name] = first[key]
    stored = {dotted(k): t.detach().cpu().contiguous() for k, t in held.items() if k not in shared}
    # checkpoints are often published in fp16: where nothing is lost, half the bytes will do
    half = sorted(name for name, tensor in stored.items() if tensor.dtype == torch.float16)
    for name, tensor in stored.items():
        if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
            stored[name] = tensor.half()
    buffers = sorted(name for name in held if name not in parameters)
    return stored, {"packed": packed, "shared": shared, "buffers": buffers, "half": half}


def realised(slot: Slot) -> bool:
    """Whether the slot's node is carried out rounded by now."""
    spec = spec_of(slot.node)
    return spec is not None and spec.execution != "float"


def _rebuild(document: Mapping[str, Any], tensors: dict[str, Tensor], catalog: Catalog) -> GraphModule:
    """The graph module over the stored tensors, its packed weights made into values."""
    half = set(document["half"])  # what was fp16 to begin with
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float16 and name not in half:
            tensors[name] = tensor.float()
    for name, source in document["shared"].items():
        tensors[name] = tensors[source]
    data, packed, buffers = document["graph"], document["packed"], set(document["buffers"])
    for name in (*tensors, *data["modules"]):
        dotted(name)
    root = nn.Module()
    for name, row in data["modules"].items():
        _attach(root, name, empty_module(row, bias=f"{name}.bias" in tensors))
    for name, tensor in tensors.items():
        if name.removesuffix(".codes") not in packed:
            _set(root, name, tensor, name in buffers)
    graph = graph_from_json(data, root, tensors, catalog.ops)
    for name, tensor in tensors.items():
        if name.removesuffix(".codes") not in packed:
            _set(graph, name, tensor, name in buffers)
    for slot in slots(graph):
        if slot.index >= 0 or slot.home not in packed:
            continue
        dtype, *shape = packed[slot.home]
        signed = slot.spec.kind == "affine" and slot.spec.symmetric
        codes = unpack(tensors[f"{slot.home}.codes"], slot.spec.widest, tuple(shape), signed)
        _set(graph, f"{slot.home}.codes", codes, True)
        params = read_params(graph, slot)
        if params is None:
            raise KeyError(f"{slot.home}.scale")
        weight = dequantize(codes, slot.spec, params.tensors, slot.layout).to(getattr(torch, dtype))
        _set(graph, slot.home.removesuffix("_q"), weight, False)
    for name, parameter in graph.named_parameters():
        if parameter.is_meta:
            raise ArtifactError(f"the tensor {name!r} is not stored")
    return graph.eval()


def _attach(root: nn.Module, name: str, module: nn.Module) -> None:
    owner, leaf = _owner(root, name)
    owner.add_module(leaf, module)


def _set(root: nn.Module, name: str, tensor: Tensor, buffer: bool) -> None:
    owner, leaf = _owner(root, name)
    if buffer:
        owner.register_buffer(leaf, tensor)
    else:
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a dotted name, with plain containers made on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root, leaf
