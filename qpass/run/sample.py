"""Draw images from an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from qpass.artifact import load
from qpass.device import select_device
from qpass.errors import ArtifactError, ModelError, RecipeError
from qpass.plugins import Catalog
from qpass.progress import Progress
from qpass.recipe import from_data


@torch.no_grad()
def sample(
    folder: Path,
    *,
    count: int,
    seed: int = 0,
    steps: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    catalog: Catalog,
) -> np.ndarray[Any, Any]:
    """Images, uint8 N x H x W x 3, sampled as the artifact's recipe says.

    The original weights are not read; the noise schedule, and a pipeline's autoencoder, come from where the
    model came from.
    """
    where = select_device(device)
    model = load(folder, where, catalog)
    try:
        recipe = from_data(model.about["recipe"], catalog=catalog, name=str(folder))
    except (KeyError, RecipeError) as error:
        raise ArtifactError(f"{str(folder)!r} does not say how to sample from it: {error}") from error
    if reason := recipe.model.cannot_sample():
        raise ModelError(f"cannot sample from {str(folder)!r}: {reason}")
    sampling = attrs.evolve(recipe.sampling, steps=steps) if steps else recipe.sampling
    batches = recipe.model.sample(
        model.denoise,
        seed=seed,
        count=count,
        sampling=sampling,
        device=where,
        progress=progress,
    )
    return np.concatenate([batch.numpy() for batch in batches])
