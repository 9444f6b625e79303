"""A loaded artifact as a module that is called like the diffusers class it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qpass.artifact.folder import GRAPH, Artifact, load_artifact
from qpass.device import select_device
from qpass.errors import ArtifactError, did_you_mean
from qpass.plugins import Catalog, catalog


class Config(dict[str, Any]):
    """An architecture's configuration, read by key or by attribute, as diffusers' pipelines do."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class LoadedModel(nn.Module):
    """A quantized denoiser. `pipe.unet = qpass.load(folder)` works: same call, same config, same output.

    `denoise(x, t, *cond)` is the plain way to call it; t may be an int, a 0-d or (B,) tensor, integer or float.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        self.graph: GraphModule = artifact.graph
        self.plan = artifact.plan
        self.about: Mapping[str, Any] = artifact.about
        self.digest = artifact.digest
        self.config = Config(artifact.about.get("config") or {})
        self.signature: Mapping[str, Any] | None = artifact.about.get("signature")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parts left in floating point."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.parameters()).device

    @property
    def add_embedding(self) -> Any:
        """As much of SDXL's as its pipeline looks at: the width that it expects of pooled text and sizes."""
        if self.config.get("addition_embed_type") != "text_time":
            raise AttributeError("add_embedding")
        return SimpleNamespace(
            linear_1=SimpleNamespace(in_features=self.config["projection_class_embeddings_input_dim"])
        )

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Which half of guidance is being computed, as pipelines tell a model that caches; this one does not."""
        return nullcontext()

    def denoise(self, x: Tensor, t: Tensor | float, *cond: Tensor) -> Tensor:
        """Call the graph."""
        output: Tensor = self.graph(x, times(t, x), *cond)
        return output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call it as the original class is called."""
        if self.signature is None:
            return self.denoise(*args, **kwargs)
        given = arguments(self.signature, args, kwargs)
        return_dict = given.pop("return_dict", True)
        output = self.denoise(*bind(self.signature, given))
        return _output()({self.signature["output"]: output}) if return_dict else (output,)


@cache
def _output() -> Any:
    """The class of what a call returns; made once, since diffusers registers each such class for good."""
    from diffusers.utils import BaseOutput

    class Output(BaseOutput):  # type: ignore[misc]
        """Like the original class's own output."""

    return Output


def times(t: Tensor | float, x: Tensor) -> Tensor:
    """Timesteps as a (B,) tensor beside x, whatever they came as."""
    value = torch.as_tensor(t, device=x.device)
    if value.dtype == torch.float64:
        value = value.float()
    return value.reshape(-1).expand(x.shape[0]) if value.numel() == 1 else value


def arguments(signature: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the original class's call by name, as Python itself would bind them."""
    name, known = signature["class_name"], signature["parameters"]
    if len(args) > len(known):
        raise TypeError(f"{name} takes at most {len(known)} arguments, {', '.join(known)}; it got {len(args)}")
    given = dict(zip(known, args, strict=False))
    for key in kwargs:
        if key in given:
            raise TypeError(f"{name} got several values for {key!r}")
        if key not in known:
            raise TypeError(f"{name} has no argument {key!r}, {did_you_mean(key, known)}")
    return {**given, **kwargs}


def bind(signature: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments in denoise order. What was not traced must be absent or None."""
    name = signature["class_name"]
    flat: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    bound = []
    for key in signature["inputs"]:
        if flat.get(key) is None:
            raise TypeError(f"{name} was traced with {key!r}, which this call does not give")
        bound.append(flat.pop(key))
    if extra := sorted(k for k, v in flat.items() if v is not None):
        raise TypeError(f"{name} was traced without {', '.join(extra)}, so this call cannot give it")
    return tuple(bound)


def load(folder: str | Path, device: str | torch.device = "cpu", known: Catalog | None = None) -> LoadedModel:
    """The quantized model in an artifact's folder, or in the folder of the run that made it."""
    path, where = Path(folder), select_device(str(device))
    if not (path / GRAPH).is_file() and (path / "artifact" / GRAPH).is_file():
        path = path / "artifact"
    if not path.is_dir():
        raise ArtifactError(f"no folder {str(folder)!r}; give one that `qpass run` wrote")
    model = LoadedModel(load_artifact(path, known or catalog()))
    return model.to(where).eval()
