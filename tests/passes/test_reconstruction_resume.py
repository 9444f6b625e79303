"""Learning stops and goes on: finished blocks are kept, found again and checked, and the bytes come out the same."""

from __future__ import annotations

import attrs
import pytest
import torch
from learned import FEW, bytes_of, prepared, run
from qpass_passes.brecq import Brecq
from qpass_passes.fitting import fit_weights
from qpass_passes.qdrop import QDrop
from qpass_passes.quantizers.mse import Mse
from qpass_passes.reconstruction import Reconstruction, engine

from qpass.artifact.folder import Artifact, load_artifact, save


def test_interrupted_and_resumed(context, tmp_path, monkeypatch):
    """Stopped in the middle of the third block and started again, it gives the bytes of an unbroken run."""
    whole = run(attrs.evolve(context, scratch=tmp_path / "whole"), QDrop(**FEW))
    broken = attrs.evolve(context, scratch=tmp_path / "broken")
    real, calls = engine.reconstruct, []

    class KilledError(Exception):
        pass

    def reconstruct(soft, data, objective, targets, seed, task):
        calls.append(soft.block.name)
        if len(calls) == 3:
            real(soft, data, attrs.evolve(objective, iterations=10), targets, seed, task)
            raise KilledError
        return real(soft, data, objective, targets, seed, task)

    monkeypatch.setattr(engine, "reconstruct", reconstruct)
    with pytest.raises(KilledError):
        run(broken, QDrop(**FEW))
    finished = calls[:2]
    calls[:] = ["", "", ""]
    resumed = run(broken, QDrop(**FEW))
    assert not set(finished) & set(calls)
    assert bytes_of(resumed) == bytes_of(whole)


def test_checkpoints_are_found_by_what_determines_them(context, tmp_path):
    """Under one key for a graph that was kept as a stage and loaded again; under another where a spec differs."""
    step = QDrop(**FEW)
    graph = prepared(context, input="int8 token dynamic")
    save(Artifact(graph=graph), tmp_path / "stage", context.catalog)
    again = load_artifact(tmp_path / "stage", context.catalog).graph
    assert again.code != graph.code
    assert step.key(again, context) == step.key(graph, context)
    assert step.key(prepared(context, input="int6 token dynamic"), context) != step.key(graph, context)


def test_an_interruption_leaves_no_rows_behind(context, tmp_path, monkeypatch):
    """Stopped from the keyboard, a pass takes its files on disk with it."""

    def stopped(*_):
        assert list(tmp_path.rglob("*.bin"))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "reconstruct", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(attrs.evolve(context, scratch=tmp_path, memory_budget=0), Brecq(**FEW))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_damaged_checkpoint_is_learned_again(context, tmp_path):
    """It is not trusted; the result is the same."""
    context = attrs.evolve(context, scratch=tmp_path)
    whole = run(context, Brecq(**FEW))
    for file in sorted(tmp_path.rglob("*.safetensors"))[:2]:
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(bytes(raw))
    assert bytes_of(run(context, Brecq(**FEW))) == bytes_of(whole)


def test_on_disk_it_learns_the_same_but_for_fp16(context, tmp_path):
    """With no memory for rows at all, they lie in files, which are gone afterwards; the losses agree."""
    found = {}
    for name, budget in (("memory", 4 << 30), ("disk", 0)):
        ctx = attrs.evolve(context, scratch=tmp_path / name, memory_budget=budget)
        graph = prepared(context)

        fit_weights(graph, Mse(), context)
        objective = Brecq(**FEW).objective()
        samples = context.get(context.calibration, graph)
        traces = Reconstruction(graph=graph, samples=samples, objective=objective, ctx=ctx, key="k").run()
        found[name] = torch.tensor([[one.before, one.after] for one in traces])
    assert torch.allclose(found["memory"], found["disk"], rtol=0.05)
    assert not list(tmp_path.rglob("*.bin"))


def test_the_same_seed_gives_the_same_bytes(context, tmp_path):
    """And another seed others."""
    graphs = [
        bytes_of(run(attrs.evolve(context, scratch=tmp_path / str(n), seed=seed), QDrop(**FEW)))
        for n, seed in enumerate((0, 0, 1))
    ]
    assert graphs[0] == graphs[1]
    assert graphs[0] != graphs[2]


def test_blocks_learned_from_other_rows_are_not_taken_up(context, tmp_path):
    """Rows on disk are fp16; with another budget others are, and its bytes are those of an unbroken run with it."""
    shared = tmp_path / "shared"
    run(attrs.evolve(context, scratch=shared), Brecq(**FEW))
    alone = run(attrs.evolve(context, scratch=tmp_path / "alone", memory_budget=0), Brecq(**FEW))
    after = run(attrs.evolve(context, scratch=shared, memory_budget=0), Brecq(**FEW))
    assert bytes_of(after) == bytes_of(alone)
