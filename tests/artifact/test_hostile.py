"""Files that are damaged or written to do harm: always an error that names the file and the way out."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forger import read, refusal, write
from safetensors.torch import load_file, save_file

import qpass
from qpass.artifact import Artifact, load_artifact, save
from qpass.errors import ArtifactError
from qpass.graph import trace
from qpass.plugins import Catalog, catalog


def test_the_forger_is_good_enough(folder: Path, known: Catalog) -> None:
    """A document written back unchanged by these tests loads, so what they change is what is refused."""
    write(folder, read(folder))
    load_artifact(folder, known)


@pytest.mark.parametrize("file", ["qpass.json", "model.safetensors"])
def test_truncated(folder: Path, known: Catalog, file: str) -> None:
    """A file cut short anywhere is refused."""
    whole = (folder / file).read_bytes()
    for part in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / file).write_bytes(whole[:part])
        assert "again with `qpass run`" in refusal(folder, known, file)


@pytest.mark.parametrize("file", ["qpass.json", "model.safetensors"])
def test_flipped_bit(folder: Path, known: Catalog, file: str) -> None:
    """One flipped bit anywhere is refused, even where the file stays well formed."""
    whole = (folder / file).read_bytes()
    source = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[source.randrange(len(whole))] ^= 1 << source.randrange(8)
        (folder / file).write_bytes(damaged)
        refusal(folder, known, file)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b'"qpass"', b"{}", b"[" * 100_000, b'{"qpass": NaN}']
)
def test_no_document(folder: Path, known: Catalog, text: bytes) -> None:
    """A qpass.json that holds no document of ours is refused, also one that nests without end."""
    (folder / "qpass.json").write_bytes(text)
    refusal(folder, known)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_format(folder: Path, known: Catalog, version: object) -> None:
    """Another format's number is named, with ours beside it and the way out."""
    write(folder, {**read(folder), "qpass": version})
    message = refusal(folder, known)
    assert f"has format {version!r}, this qpass reads format 1; install a newer one" in message


@pytest.mark.parametrize("file", ["qpass.json", "model.safetensors"])
def test_half_of_it(folder: Path, known: Catalog, file: str) -> None:
    """A folder that lacks one of the two files is no artifact, and the error names the one that lacks."""
    (folder / file).unlink()
    with pytest.raises(
        ArtifactError, match=f"is no artifact: it holds no {file}; give the folder `qpass run` wrote"
    ):
        load_artifact(folder, known)


def test_load_wants_a_folder(tmp_path: Path) -> None:
    """`qpass.load` of nothing, of a file and of an empty folder say so."""
    with pytest.raises(ArtifactError, match=r"no folder .*; give one that `qpass run` wrote"):
        qpass.load(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"no folder .*; give one that `qpass run` wrote"):
        qpass.load(tmp_path / "file")
    with pytest.raises(ArtifactError, match=r"it holds no qpass.json"):
        qpass.load(tmp_path)


@pytest.mark.parametrize(
    "op",
    [
        "os.system", "torch.load", "builtins.eval", "aten.from_file.default", "aten.add_.Tensor", "aten.add.out",
        "aten.rand.default", "aten.add", "aten.add.Tensor.x", "aten.__class__.default", "operator.attrgetter",
        "operator.methodcaller", "math.__loader__", "torch.sym_sqrt", "torch.ops.load_library",
        "qpass.files:write_file", "qpass.kernels.reference:torch", "quantized.linear.default", "", "aten..", ":",
    ],
)  # fmt: skip
def test_op_that_is_not_on_the_list(folder: Path, known: Catalog, op: str) -> None:
    """A function that is not on the list is refused by name, whatever it is."""
    document = read(folder)
    place = document["graph"]["targets"].index("aten.silu.default")
    document["graph"]["targets"][place] = op
    write(folder, document)
    assert f"calls {op!r}" in refusal(folder, known)


def test_op_of_a_plugin_that_is_not_installed(tmp_path: Path, known: Catalog) -> None:
    """A graph that calls a plugin's op loads with the plugin; without it the error names the package."""
    file = tmp_path / "stranger.py"
    file.write_text(STRANGER)
    with_plugin = catalog([file])
    (twist,) = (function for function, _ in with_plugin.ops.values())
    graph = trace(torch.nn.Linear(3, 3), (torch.ones(2, 3),))
    last = graph.graph.output_node()
    with graph.graph.inserting_before(last):
        last.args = (graph.graph.call_function(twist, (last.args[0],)),)
    graph.recompile()
    with pytest.raises(ArtifactError, match=r"not on the list of ops .* register_ops"):
        save(Artifact(graph=graph), tmp_path / "a", known)
    save(Artifact(graph=graph), tmp_path / "a", with_plugin)
    x = torch.randn(4, 3)
    assert torch.equal(load_artifact(tmp_path / "a", with_plugin).graph(x), graph(x))
    assert (
        "'qpass_plugin_stranger', which is not installed; install it, or give its file with --plugin"
        in refusal(tmp_path / "a", known)
    )


STRANGER = '''
import torch
import qpass

def twist(x: torch.Tensor) -> torch.Tensor:
    """Negates."""
    return -x

@qpass.hookimpl
def register_ops():
    return [twist]
'''


def test_unknown_module_class(folder: Path, known: Catalog) -> None:
    """A module of a class that is not on the list is refused by name."""
    document = read(folder)
    document["graph"]["modules"]["conv_in"][0] = "Bilinear"
    write(folder, document)
    assert "module class 'Bilinear' is not on the list" in refusal(folder, known)


@pytest.mark.parametrize("place", [-1, 10**6, "ahead"])
def test_node_that_reads_what_is_not_before_it(folder: Path, known: Catalog, place: int | str) -> None:
    """A node whose argument is a later node, itself, or none at all is refused."""
    document = read(folder)
    number, node = next(
        (i, n) for i, n in enumerate(document["graph"]["nodes"]) if n[2] and isinstance(n[2][0], dict)
    )
    node[2][0] = {"n": number if place == "ahead" else place}
    write(folder, document)
    assert "is malformed" in refusal(folder, known)


@pytest.mark.parametrize(
    "name", ["conv_in.bias", "conv_in.weight_q.scale", "conv_in.weight_q.codes", "time_groups.edges"]
)
def test_missing_tensor(folder: Path, known: Catalog, name: str) -> None:
    """A tensor that the graph needs and the file lacks is an error that names it."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    document = read(folder)
    document["buffers"] = [buffer for buffer in document["buffers"] if buffer != name]
    write(folder, document)
    if name == "conv_in.bias":  # a layer may be without one
        load_artifact(folder, known)
    else:
        assert name.removesuffix("_q.codes") in refusal(folder, known)


JUNK = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    "x.y",
    "a b",
    [],
    [[]],
    {},
    {"n": 0},
    {"n": -1},
    {"c": ["dtype", "load"]},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_random_malice(folder: Path, known: Catalog) -> None:
    """Whatever stands anywhere in a document with fitting hashes, it loads or is refused; nothing else is raised."""
    text = (folder / "qpass.json").read_text()
    source = random.Random(0)
    by_depth: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for path in places(json.loads(text)):
        by_depth.setdefault((path[0], path[1] if len(path) > 1 else "", len(path)), []).append(path)
    harmless = 0
    for kind in [source.choice(sorted(by_depth, key=str)) for _ in range(80)]:
        document = json.loads(text)
        *path, last = source.choice(by_depth[kind])
        owner = document
        for key in path:
            owner = owner[key]
        if isinstance(owner, dict) and source.random() < 0.3:
            del owner[last]
        else:
            owner[last] = source.choice(JUNK)
        write(folder, document)
        with contextlib.suppress(ArtifactError):
            load_artifact(folder, known)
            harmless += 1
    assert harmless < 50
