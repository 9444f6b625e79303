"""A run's folder: stages, analyses and observations, each kept whole under the fingerprint of what made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.fx import GraphModule

from qpass.analysis import Analysis, Tensors
from qpass.artifact.folder import Artifact, load_artifact, save, save_tensors
from qpass.errors import ArtifactError, StorageError
from qpass.evaluator import Observation, Series
from qpass.files import UNFINISHED, checksum, locked, new_folder, sha256, sweep, write_file
from qpass.manager import Record, Run, Stages
from qpass.plugins import Catalog
from qpass.progress import peak_memory_mb
from qpass.report.data import plain
from qpass.run.fingerprint import digest, own_code

REPORT = ("report.json", "report.html", "timings.json")  # what a run says of its artifact
OWN = (*REPORT, "recipe.toml", "calibration.json", "artifact")  # what it writes, whatever was there


@attrs.frozen(kw_only=True, eq=False)
class RunFolder:
    """Where a run keeps what it has done.

    What it knows of the original model is kept in `shared`, where that is given: runs of other recipes find it there
    under the same fingerprint.
    """

    path: Path
    catalog: Catalog
    shared: Path | None = None

    @property
    def artifact(self) -> Path:
        """The quantized model."""
        return self.path / "artifact"

    @property
    def calibration(self) -> Path:
        """What the model was calibrated on, described."""
        return self.path / "calibration.json"

    @property
    def stages(self) -> Path:
        """What is this run's own."""
        return self.path / "stages"

    @property
    def _facts(self) -> Path:
        """All that the last run here depended on."""
        return self.stages / "facts.json"

    @property
    def originals(self) -> Path:
        """What is known of the original model."""
        return self.shared or self.stages

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the folder for one process at a time, and clear what an interrupted one left half-written."""
        busy = f"another run is at work in {str(self.path)!r}; wait for it, or choose another folder with --out"
        if not self._facts.exists() and (there := [name for name in OWN if (self.path / name).exists()]):
            raise StorageError(
                f"{str(self.path)!r} is no run's folder, and its {there[0]!r} would be replaced; choose another --out, "
                f"or move {', '.join(there)} away"
            )
        with locked(self.stages / ".lock", busy, say):
            sweep(self.path)
            sweep(self.stages, f"**/{UNFINISHED}*")
            yield

    def changed(self, facts: Mapping[str, Any]) -> list[str]:
        """The names of what differs from the last run in this folder; remembers the new state, and drops its report.

        However far this run comes, no other recipe's figures stand beside what it leaves.
        """
        before = _json(self._facts) or {}
        now = plain(facts)
        names = sorted(k for k in now.keys() | before.keys() if before and now.get(k) != before.get(k))
        for name in REPORT if names else ():
            (self.path / name).unlink(missing_ok=True)
        write_file(self._facts, json.dumps(now, sort_keys=True, indent=1))
        return names

    def analysis(self, base: str, question: Analysis[Any]) -> Path:
        """Where the answer to a question about the original model is kept."""
        key = [base, repr(question), own_code(question)]
        return self.originals / "analyses" / f"{question.name}-{digest(key)}.safetensors"

    def read_analysis(self, base: str, question: Analysis[Any]) -> Tensors | None:
        """The answer, if it is there and whole."""
        file = self.analysis(base, question)
        try:
            whole = file.with_suffix(".sha256").read_text(encoding="utf-8") == sha256(file)
            return load_file(file) if whole else None
        except (OSError, ValueError, SafetensorError):
            return None  # missing or damaged: it is computed again

    def write_analysis(self, base: str, question: Analysis[Any], tensors: Tensors) -> None:
        """Keep the answer, then its hash."""
        file = self.analysis(base, question)
        save_tensors(dict(tensors), file)
        write_file(file.with_suffix(".sha256"), sha256(file))

    def teacher(self, fingerprint: str) -> GraphModule | None:
        """The traced original, if another run has left it whole; one that shares with none traces for itself."""
        try:
            return load_artifact(self._teacher(fingerprint), self.catalog).graph if self.shared else None
        except ArtifactError:
            return None

    def write_teacher(self, fingerprint: str, graph: GraphModule) -> None:
        """Leave it for others."""
        if self.shared:
            save(
                Artifact(graph=graph, about={"fingerprint": fingerprint}), self._teacher(fingerprint), self.catalog
            )

    def _teacher(self, fingerprint: str) -> Path:
        return self.originals / "traces" / fingerprint

    def _observation(self, evaluator: str, role: str, fingerprint: str, common: bool) -> Path:
        if self.shared and common:
            # beside those of other runs, which may have looked at other models, or otherwise
            return self.shared / "observations" / f"{evaluator}-{role}-{fingerprint}"
        return self.stages / "observations" / f"{evaluator}-{role}"

    def read_observation(
        self, evaluator: str, role: str, fingerprint: str, common: bool = False
    ) -> Observation | None:
        """What an evaluator saw, if it was kept under this fingerprint and is whole.

        `common`: it would see the same in any run of this fingerprint.
        """
        folder = self._observation(evaluator, role, fingerprint, common)
        kept = _json(folder / "observation.json")
        if kept is None or kept.get("checksum") != checksum(kept) or kept["fingerprint"] != fingerprint:
            return None
        try:
            if sha256(folder / "images.safetensors") != kept["images"]:
                return None
            pictures = load_file(folder / "images.safetensors")
        except (SafetensorError, OSError):
            return None
        series = {
            name: Series(**{**row, "x": tuple(row["x"]), "y": tuple(map(_number, row["y"]))})
            for name, row in kept["series"].items()
        }
        return Observation(
            numbers={name: _number(value) for name, value in kept["numbers"].items()},
            series=series,
            images={name: tensor.numpy() for name, tensor in pictures.items()},
            protocol=kept["protocol"],
        )

    def write_observation(
        self, evaluator: str, role: str, fingerprint: str, seen: Observation, common: bool = False
    ) -> None:
        """Keep what an evaluator saw."""
        document = {
            "fingerprint": fingerprint,
            "numbers": {name: _text(value) for name, value in seen.numbers.items()},
            "series": {
                name: {**attrs.asdict(row), "x": plain(row.x), "y": [_text(value) for value in row.y]}
                for name, row in seen.series.items()
            },
            "protocol": plain(seen.protocol),
        }
        with new_folder(self._observation(evaluator, role, fingerprint, common)) as aside:
            images = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in seen.images.items()}
            save_tensors(images, aside / "images.safetensors")
            document["images"] = sha256(aside / "images.safetensors")
            document = json.loads(json.dumps(document))  # keys are text from here on
            document["checksum"] = checksum(document)
            (aside / "observation.json").write_text(json.dumps(document), encoding="utf-8")


@attrs.define(eq=False)
class KeptStages(Stages):
    """Every pass's result, as an artifact that also holds the records so far; what it took lies beside it.

    Runs that share a folder and begin with the same passes take each other's results.
    """

    folder: RunFolder
    prints: list[str]
    names: list[str]

    def _place(self, index: int) -> Path:
        return self.folder.stages / f"{index + 1:02d}-{self.names[index]}"

    def _elsewhere(self, index: int) -> Iterator[Path]:
        """The same stage of runs beside this one, if they share with it."""
        if self.folder.shared:
            own = self._place(index)
            every = self.folder.path.parent.glob(f"*/{own.relative_to(self.folder.path)}")
            yield from sorted(place for place in every if place != own)

    def load(self, index: int) -> Run | None:
        """The stage, if this run or one that shares with it made it under the same fingerprint, and it is whole."""
        if kept := self._read(self._place(index), index):
            self._tell_calibration(self._place(index))
            return kept
        for place in self._elsewhere(index):
            # an artifact is read only where the small file says that it may be the one
            said = _json(_costs(place)) or {}
            if said.get("fingerprint") == self.prints[index] and (kept := self._read(place, index)):
                self._tell_calibration(place)
                return attrs.evolve(kept, kept_from=repr(str(place.parent.parent)))
        return None

    def _tell_calibration(self, stage: Path) -> None:
        """Say beside the run what this stage was calibrated on, as nobody asks for the set again."""
        with suppress(OSError):
            write_file(self.folder.calibration, _calibration(stage).read_bytes())

    def _read(self, place: Path, index: int) -> Run | None:
        if not place.is_dir():
            return None
        try:
            kept = load_artifact(place, self.folder.catalog)
        except ArtifactError:
            return None  # damaged or of an older format: it is made again
        if kept.about.get("fingerprint") != self.prints[index]:
            return None
        costs = _json(_costs(place)) or {}
        return Run(
            graph=kept.graph,
            plan=kept.plan,
            records=tuple(Record(**row) for row in kept.about["records"]),
            seconds=tuple(costs.get("seconds", ())),
            resumed=tuple(costs.get("resumed", ())),
            peak_memory_mb=float(costs.get("peak_memory_mb", 0)),
        )

    def begin(self, index: int) -> bool:
        """Remember it for good: what a pass keeps of its work outlives the stage, and runs of other recipes."""
        mark = self.folder.stages / "begun" / self.prints[index]
        before = mark.exists()
        write_file(mark, f"{self.names[index]}\n")
        return before

    def save(self, index: int, run: Run) -> None:
        """Keep the stage."""
        place = self._place(index)
        costs = {
            "fingerprint": self.prints[index],
            "seconds": run.seconds,
            "resumed": run.resumed,
            "peak_memory_mb": max(peak_memory_mb(), run.peak_memory_mb),
        }
        write_file(_costs(place), json.dumps(costs))
        with suppress(OSError):  # no pass has asked for the set so far
            write_file(_calibration(place), self.folder.calibration.read_bytes())
        about = {
            "fingerprint": self.prints[index],
            "records": [plain(attrs.asdict(record, recurse=False)) for record in run.records],
        }
        save(Artifact(graph=run.graph, plan=run.plan, about=about), place, self.folder.catalog)


def _costs(stage: Path) -> Path:
    """The file of what a stage took: time and memory vary between equal runs, and the stage does not."""
    return stage.with_suffix(".costs.json")


def _calibration(stage: Path) -> Path:
    """The file of what a run had been calibrated on by then."""
    return stage.with_suffix(".calibration.json")


def _json(file: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _text(value: float) -> float | str:
    """A number as JSON; what JSON has no word for as text."""
    number = float(value)  # numpy's own numbers are none to JSON
    return number if np.isfinite(number) else repr(number)


def _number(value: float | str) -> float:
    return float(value)
