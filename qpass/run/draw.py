"""Draw images from an artifact, or from an original model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from qpass.artifact import load
from qpass.artifact.folder import GRAPH
from qpass.device import select_device
from qpass.errors import ArtifactError, ModelError, RecipeError, StorageError
from qpass.files import UNFINISHED, locked, storage, sweep, write_file
from qpass.images.drawn import facts, gaps
from qpass.images.folder import ABOUT
from qpass.model import ModelAdapter
from qpass.plugins import Catalog
from qpass.progress import Progress
from qpass.recipe import Recipe, from_data
from qpass.sampling import Denoise, Sampling

Pictures = np.ndarray[Any, Any]
LOCK = ".lock"  # in a folder of images, held while they are drawn


@attrs.frozen(kw_only=True, eq=False)
class Source:
    """A model to draw from, and how it is drawn from. `about` says so in plain data."""

    adapter: ModelAdapter
    denoise: Denoise
    sampling: Sampling
    device: torch.device
    about: Mapping[str, Any]

    @torch.no_grad()
    def batches(
        self, *, seed: int, count: int, first: int = 0, progress: Progress | None = None
    ) -> Iterator[Pictures]:
        """Images `first` to `first + count - 1`, uint8 N x H x W x 3."""
        for batch in self.adapter.sample(
            self.denoise, seed=seed, first=first, count=count, sampling=self.sampling, device=self.device,
            progress=progress,
        ):  # fmt: skip
            yield batch.numpy()


def is_artifact(folder: Path) -> bool:
    """Whether the folder is an artifact's or a run's, and not one that merely has some model's name."""
    return any((place / GRAPH).is_file() for place in (folder, folder / "artifact"))


def artifact(folder: Path, *, catalog: Catalog, device: str = "cpu", overrides: Sequence[str] = ()) -> Source:
    """The quantized model of a run's or an artifact's folder, sampled as its recipe says.

    The original weights are not read; the noise schedule, and a pipeline's autoencoder, come from where the
    model came from.
    """
    where = select_device(device)
    for text in overrides:
        if not text.strip().startswith("sampling."):
            raise RecipeError(f"--set {text}: of an artifact, only sampling.* can be set; it is already quantized")
    model = load(folder, where, catalog)
    try:
        # its passes are done, so whoever brought them is not needed to draw
        data = {part: model.about["recipe"][part] for part in ("model", "sampling")}
        passes = [str(step["use"]) for step in model.about["recipe"]["passes"]]
        _check_model(data["model"]["use"], folder, catalog)
        # what the artifact itself says is checked first, so that a mistake in --set is told apart from it
        from_data(data, catalog=catalog, name=str(folder))
    except (KeyError, TypeError, RecipeError) as error:
        raise ArtifactError(f"{str(folder)!r} does not say how to sample from it: {error}") from error
    recipe = from_data(data, catalog=catalog, name=str(folder), overrides=overrides)
    source = _source(recipe, str(folder), lambda: model.denoise, where)
    return attrs.evolve(source, about={**source.about, "passes": passes, "artifact": model.digest})


def _check_model(use: str, folder: Path, catalog: Catalog) -> None:
    """Raise where the recipe's model is an object of Python, which no recipe can hold, or of a plugin not here."""
    cls = catalog.classes["models"].get(use)
    if cls is None:
        raise ArtifactError(
            f"{str(folder)!r} is of the model {use!r}, which nothing here brings; "
            "install its plugin, or give the plugin's file with --plugin"
        )
    if any(f.default is attrs.NOTHING and not f.metadata.get("data", True) for f in attrs.fields(cls)):
        raise ArtifactError(
            f"{str(folder)!r} was made in Python, of a model in memory, and what samples it was never on disk; in "
            f"Python, `pipe.unet = qpass.load({str(folder)!r})` draws with it, or save the pipeline with "
            "`save_pretrained` and quantize its folder"
        )


def original(name: str, *, catalog: Catalog, device: str = "cpu", overrides: Sequence[str] = ()) -> Source:
    """A model in full precision, by the name of its adapter; `model.path` and the like are overrides."""
    where = select_device(device)
    recipe = from_data({"model": {"use": name}}, catalog=catalog, name=name, overrides=overrides)
    return _source(
        recipe, name, lambda: functools.partial(recipe.model.call, recipe.model.load().to(where)), where
    )


def _source(recipe: Recipe, what: str, denoise: Callable[[], Denoise], device: torch.device) -> Source:
    if reason := recipe.model.cannot_sample():
        raise ModelError(f"cannot sample from {what!r}: {reason}")
    recipe.model.check_sampling(recipe.sampling)
    about = {
        "drawn_from": what, "model": recipe.model.name, "model_weights": recipe.model.fingerprint(),
        "passes": [step.name for step in recipe.passes], "batch": recipe.sampling.batch,
    }  # fmt: skip
    return Source(adapter=recipe.model, denoise=denoise(), sampling=recipe.sampling, device=device, about=about)


def sample(
    folder: Path, *, count: int, seed: int = 0, steps: int | None = None, device: str = "cpu",
    progress: Progress | None = None, catalog: Catalog,
) -> Pictures:  # fmt: skip
    """Images of an artifact, uint8 N x H x W x 3, all in memory."""
    overrides = [f"sampling.steps={steps}"] if steps else []
    source = artifact(folder, catalog=catalog, device=device, overrides=overrides)
    return np.concatenate(list(source.batches(seed=seed, count=count, progress=progress)))


def into_folder(source: Source, folder: Path, *, seed: int, count: int, progress: Progress | None = None) -> None:
    """One PNG per image, named by its number. Images that are there already are kept, not drawn again."""
    about = json.loads(json.dumps({**source.about, **facts(source.sampling, seed)}))
    with _claimed(folder, about):
        there = 1 + max((int(file.stem) for file in folder.glob("*.png") if file.stem.isdecimal()), default=-1)
        if there > count:
            raise StorageError(
                f"{str(folder)!r} has {there} images already, more than the {count} asked for; give --count {there}, "
                "or choose another --out"
            )
        size = source.sampling.batch  # whole batches, since equal bytes are promised at equal batch size
        files = [folder / f"{i:06d}.png" for i in range(count)]
        parts = [files[start : start + size] for start in range(0, count, size)]
        for first, last in gaps([all(file.is_file() for file in part) for part in parts]):
            missing = parts[first:last]
            batches = source.batches(
                seed=seed, first=first * size, count=sum(map(len, missing)), progress=progress
            )
            for part, batch in zip(missing, batches, strict=True):
                for file, image in zip(part, batch, strict=True):
                    write_file(file, png(image))


@contextmanager
def _claimed(folder: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder for one process at a time, with a note of what its images are; refuse one that holds others."""
    _check(folder, about)  # before a lock is put into what is not ours
    busy = f"another `qpass sample` is at work in {str(folder)!r}; wait for it, or choose another --out"
    with locked(folder / LOCK, busy):
        sweep(folder)
        if not _check(folder, about):
            write_file(folder / ABOUT, json.dumps(about, indent=2, sort_keys=True) + "\n")
        yield


def _check(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether the folder says that it holds such images; False where it is empty, refused where it holds others."""
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        filled = any(file.name != LOCK and not file.name.startswith(UNFINISHED) for file in folder.iterdir())
    if not filled:
        return False
    try:
        there = json.loads((folder / ABOUT).read_text())
        if not isinstance(there, dict):
            raise ValueError(f"{ABOUT} holds no table")
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{str(folder)!r} is not empty, and no {ABOUT} says what is in it; choose another --out"
        ) from error
    unlike = sorted(key for key in about.keys() | there.keys() if about.get(key) != there.get(key))
    if set(unlike) - {"drawn_from"}:  # a folder has many paths; what it holds is known by the hashes
        told = "; ".join(f"{key} {there.get(key)!r} against {about.get(key)!r}" for key in unlike)
        raise StorageError(f"{str(folder)!r} holds images that were drawn otherwise: {told}; choose another --out")
    return True


def png(image: Pictures) -> bytes:
    """The image as the bytes of a PNG file."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()
