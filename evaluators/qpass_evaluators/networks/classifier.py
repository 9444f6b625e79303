"""A small residual network that tells the ten classes of CIFAR-10 apart.

ResNet-9 as in the DAWNBench entries of Page (2018), about half as wide: 1.3 million parameters, 93 million
multiply-accumulates for an image of 32 x 32, so that it is trained on a CPU in minutes. Every width is a multiple
of 32, the depth of a bf16 tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from qpass.evaluator import EvaluationError
from qpass_evaluators.networks import weight_files
from qpass_evaluators.networks.feature_network import FeatureNetwork, Pictures, Run, as_tensor

WIDTHS = (32, 64, 128, 224)
CLASSES = 10
SIZE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training set, on 0..1
LOGIT_SCALE = 0.125  # as Page has it: max-pooled features are large, and this keeps early logits near zero
SHIPPED = weight_files.SHIPPED / "cifar10_classifier_fp16.safetensors"


class Residual(nn.Module):
    """x + f(x), f two convolutions 3 x 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))  # type: ignore[no-any-return]


class Net(nn.Module):
    """Normalised images N x 3 x 32 x 32 to logits N x 10; `pool` gives the N x 224 below them."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.stem = convolution(3, a)
        self.stages = nn.Sequential(
            convolution(a, b), nn.MaxPool2d(2), Residual(b),
            convolution(b, c), nn.MaxPool2d(2),
            convolution(c, d), nn.MaxPool2d(2), Residual(d),
        )  # fmt: skip
        self.head = nn.Linear(d, CLASSES)

    def pool(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).amax((2, 3))  # type: ignore[no-any-return]

    def classify(self, pooled: Tensor) -> Tensor:
        return self.head(pooled) * LOGIT_SCALE  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.pool(x))


def convolution(inside: int, outside: int) -> nn.Sequential:
    """Convolution 3 x 3, batch-norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


def build() -> Net:
    """The network, untrained."""
    return Net()


def normalise(images: Tensor) -> Tensor:
    """uint8 N x H x W x 3 to the network's input: N x 3 x H x W with mean 0 and standard deviation 1.

    >>> normalise(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape
    torch.Size([2, 3, 32, 32])
    """
    scale = torch.tensor(STD, device=images.device) * 255
    offset = torch.tensor(MEAN, device=images.device) * 255
    return ((images.float() - offset) / scale).permute(0, 3, 1, 2)


@attrs.frozen(kw_only=True)
class Classifier(FeatureNetwork):
    """Class logits and the features below them, of images 32 x 32."""

    name: ClassVar[str] = "cifar10-classifier"
    batch: ClassVar[int] = 256

    weights: str = attrs.field(default="", metadata={"help": "weights file; empty is the shipped one"})

    @property
    def path(self) -> Path:
        return Path(self.weights) if self.weights else SHIPPED

    def fingerprint(self) -> str:
        weight_files.require(self.path, "train them with `python -m qpass_models.train cifar10-classifier`")
        return weight_files.fingerprint(self.path)

    def protocol(self) -> Mapping[str, Any]:
        return {"features": self.name, "weights": self.fingerprint(), "resize": "none", "precision": "float32"}

    def dimensions(self) -> Mapping[str, int]:
        return {"logits": CLASSES, "pool": WIDTHS[-1]}

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != (SIZE, SIZE):
            raise EvaluationError(f"{self.name}: images must be {SIZE} x {SIZE}, not {height} x {width}")

    def prepare(self, device: torch.device) -> Run:
        net = _load(self.path, self.fingerprint(), device)

        def run(images: Pictures) -> Mapping[str, Tensor]:
            x = normalise(as_tensor(images, device))
            pooled = net.pool(x)
            return {"logits": net.classify(pooled), "pool": pooled}

        return run


@lru_cache(maxsize=2)
def _load(path: Path, fingerprint: str, device: torch.device) -> Net:
    """The trained network; `fingerprint` is there so that a file that changed is read again."""
    state, net = weight_files.read(path), build()
    wanted = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    weight_files.check_names(path, set(state), wanted, "the CIFAR-10 classifier")
    try:
        net.load_state_dict({name: state[name] for name in wanted}, strict=False)
    except RuntimeError as error:  # a shape that differs
        raise EvaluationError(f"weights {str(path)!r} do not fit the CIFAR-10 classifier") from error
    return net.eval().to(device).to(memory_format=torch.channels_last)
