"""A loaded artifact as a module that is called like the diffusers class it was made from."""

from __future__ import annotations

import warnings
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

IN_DIFFUSERS = "LoadedDenoiser"


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
    Inputs of another number format are turned into the model's own, and its output back into theirs; timesteps stay
    as they are, since bfloat16 has no 853.
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
        given, own = x.dtype, self.dtype
        turned = [value.to(own) if value.dtype == given else value for value in (x, *cond)]
        output: Tensor = self.graph(turned[0], times(t, x), *turned[1:])
        return output.to(given)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Devices change, number formats do not: scales and what was traced around them belong to the one of old."""
        changed = False

        def moved(tensor: Tensor) -> Tensor:
            nonlocal changed
            result: Tensor = fn(tensor)
            if result.dtype == tensor.dtype:
                return result
            changed = True
            return tensor.to(result.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        if changed:
            warnings.warn(f"a quantized model keeps its number formats: it stays in {self.dtype}", stacklevel=3)
        return self

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refused: diffusers has no format for it."""
        raise ArtifactError(
            "a quantized model is saved as its artifact, the folder that it was loaded from; keep that beside the "
            "pipeline's own parts and give it as in from_pretrained(..., unet=qpass.load(folder))"
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call it as the original class is called."""
        if self.signature is None:
            return self.denoise(*args, **kwargs)
        given = arguments(self.signature, args, kwargs)
        return_dict = given.pop("return_dict", True)
        inputs = bind(self.signature, given)
        check_size(self.signature, inputs[0])
        output = self.denoise(*inputs)
        return _output()({self.signature["output"]: output}) if return_dict else (output,)


def as_module(artifact: Artifact) -> LoadedModel:
    """The artifact as a module; where a diffusers class is its model, as one that pipelines take for their own."""
    made: LoadedModel = (LoadedModel if artifact.about.get("signature") is None else _of_diffusers())(artifact)
    return made


@cache
def _of_diffusers() -> Any:
    """`LoadedModel` as a `ModelMixin`, which `from_pretrained(..., unet=...)` asks for. diffusers imports slowly."""
    from diffusers import ModelMixin

    return type(IN_DIFFUSERS, (LoadedModel, ModelMixin), {"__module__": __name__, "__doc__": LoadedModel.__doc__})


def __getattr__(name: str) -> Any:
    """Where pickle looks for that class."""
    if name == IN_DIFFUSERS:
        return _of_diffusers()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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


def check_size(signature: Mapping[str, Any], x: Tensor) -> None:
    """Refuse heights and widths that the graph was not traced for, before it stumbles over them."""
    size, multiple = signature.get("size"), signature.get("multiple", 1)
    given = tuple(x.shape[2:])
    told = f"{signature['class_name']} was given {' x '.join(map(str, given))}, and this artifact "
    if size is not None and given != tuple(size):
        raise ValueError(
            f"{told}draws {size[0]} x {size[1]} only; quantize the model with a sample_size of {given[0]} for that"
        )
    if any(side % multiple for side in given):
        raise ValueError(f"{told}takes multiples of {multiple} only; crop the image after drawing a larger one")


def load(folder: str | Path, device: str | torch.device = "cpu", known: Catalog | None = None) -> LoadedModel:
    """The quantized model in an artifact's folder, or in the folder of the run that made it."""
    path, where = Path(folder), select_device(str(device))
    if not (path / GRAPH).is_file() and (path / "artifact" / GRAPH).is_file():
        path = path / "artifact"
    if not path.is_dir():
        raise ArtifactError(f"no folder {str(folder)!r}; give one that `qpass run` wrote")
    model = as_module(load_artifact(path, known or catalog()))
    return model.to(where).eval()
