"""Any timm model as a feature network: FD-DINOv2 and its kin, from weights in a local file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
from attrs import validators as v
from torch import Tensor, nn

from qpass.errors import did_you_mean
from qpass.evaluator import EvaluationError
from qpass_evaluators.networks import weight_files
from qpass_evaluators.networks.feature_network import FeatureNetwork, Pictures, Run, as_tensor


@attrs.frozen(kw_only=True)
class TimmBackbone(FeatureNetwork):
    """pool: what the model hands to its classifier.

    The whole image is resized to the model's own size, without a crop, by its own interpolation with antialias, and
    rounded to uint8 as when PIL resizes it; then normalised by the model's mean and deviation.
    """

    name: ClassVar[str] = "timm"

    model: str = attrs.field(
        default="vit_small_patch14_dinov2.lvd142m", metadata={"help": "name of the model in timm"}
    )
    weights: str = attrs.field(default="", metadata={"help": "file of its trained weights; required"})
    size: int = attrs.field(
        default=0, validator=v.ge(0), metadata={"help": "side of the resized image; 0 is the model's own"}
    )

    @property
    def path(self) -> Path:
        check_name(self.model)
        if not self.weights:
            raise EvaluationError(f"{self.name}: untrained features measure nothing; {fetch(self.model)}")
        weight_files.require(Path(self.weights), fetch(self.model))
        return Path(self.weights)

    def fingerprint(self) -> str:
        return weight_files.fingerprint(self.path)

    def protocol(self) -> Mapping[str, Any]:
        config = _config(_outline(self.model, self.size), self.size)
        return {
            "features": f"{self.name}/{self.model}",
            "weights": self.fingerprint(),
            "resize": f"{config['interpolation']} to {config['side']}, antialias, rounded to uint8",
            "mean": list(config["mean"]),
            "std": list(config["std"]),
            "precision": "float32",
        }

    def dimensions(self) -> Mapping[str, int]:
        net: Any = _outline(self.model, self.size)
        return {"pool": int(getattr(net, "head_hidden_size", net.num_features))}

    def check(self) -> None:
        net = _outline(self.model, self.size)
        state = _fitting(net, self.model, self.path)
        for name, tensor in net.state_dict().items():
            if name in state and state[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, not {tuple(state[name].shape)}"
                raise EvaluationError(
                    f"weights {str(self.path)!r} do not fit {self.model}: {name} must be {shapes}"
                )

    def prepare(self, device: torch.device) -> Run:
        net = _load(self.model, self.size, self.path, self.fingerprint(), device)
        config = _config(net, self.size)

        def run(images: Pictures) -> Mapping[str, Tensor]:
            small = resize(as_tensor(images, torch.device("cpu")), config["side"], config["interpolation"])
            return {"pool": net(normalise(small.to(device), config["mean"], config["std"]))}

        return run


def resize(images: Tensor, side: int, interpolation: str) -> Tensor:
    """uint8 N x H x W x 3 to uint8 N x 3 x side x side, as PIL does it.

    >>> resize(torch.full((1, 8, 8, 3), 7, dtype=torch.uint8), 4, "bicubic").unique()
    tensor([7], dtype=torch.uint8)
    """
    planes = images.permute(0, 3, 1, 2)
    return F.interpolate(planes, size=(side, side), mode=interpolation, align_corners=False, antialias=True)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """0..255 to mean 0 and deviation 1, by channel."""
    centre, scale = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - centre) / scale


def check_name(model: str) -> None:
    """Raise `EvaluationError` where timm has no such model."""
    import timm  # here and below: so that looking at the plugins does not import it

    if not timm.is_model(model):
        names = did_you_mean(model.split(".")[0], timm.list_models())
        raise EvaluationError(f"timm: no model is called {model!r}; {names}")


def fetch(model: str) -> str:
    """How to come by the weights of a model."""
    return (
        f'where there is a network, run python -c "import timm, safetensors.torch as s; '
        f"s.save_file(timm.create_model('{model}', pretrained=True).state_dict(), 'backbone.safetensors')\" "
        f'and give weights = "backbone.safetensors"'
    )


def _config(net: nn.Module, size: int) -> dict[str, Any]:
    import timm

    config: dict[str, Any] = timm.data.resolve_model_data_config(net)
    if config["interpolation"] not in ("bicubic", "bilinear"):
        raise EvaluationError(f"timm: models with interpolation {config['interpolation']!r} are not supported")
    return {**config, "side": size or config["input_size"][-1]}


def _create(model: str, size: int) -> nn.Module:
    import timm

    check_name(model)
    try:
        net: nn.Module = timm.create_model(
            model, pretrained=False, num_classes=0, **({"img_size": size} if size else {})
        )
    except TypeError as error:
        raise EvaluationError(f"timm: {model} has a size of its own; leave out size = {size}") from error
    return net.eval()


@lru_cache(maxsize=8)
def _outline(model: str, size: int) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return _create(model, size)


@lru_cache(maxsize=1)
def _load(model: str, size: int, path: Path, fingerprint: str, device: torch.device) -> nn.Module:
    """The trained model; `fingerprint` is there so that a file that changed is read again."""
    net = _create(model, size)
    try:
        net.load_state_dict(_fitting(net, model, path), strict=False)
    except RuntimeError as error:  # a shape that differs
        raise EvaluationError(f"weights {str(path)!r} do not fit {model}: {_first(error)}") from error
    return net.to(device)


def _fitting(net: nn.Module, model: str, path: Path) -> dict[str, Tensor]:
    """The file's tensors under the net's names; an `EvaluationError` where some are missing."""
    state = weight_files.read(path)
    # timm's own conversion from the names of the original release, and to another image size
    if convert := getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None):
        state = convert(state, net)
    wanted = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    weight_files.check_names(path, set(state), wanted, model)
    return {name: state[name] for name in wanted}


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
