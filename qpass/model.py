"""The contract of a model adapter: how a model is found, loaded, called, and sampled from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qpass.errors import ModelError, RecipeError
from qpass.progress import Progress
from qpass.sampling import Denoise, Sampler, Sampling, check_guidance, trajectory


class ModelAdapter(ABC):
    """One source of models. Subclasses are frozen attrs classes; their fields are the recipe's options.

    A loaded module is used as `call(module, x, t, *cond)`; `example()` is such an `(x, t, *cond)`.
    """

    name: ClassVar[str]

    @classmethod
    def adopt(cls, thing: object) -> ModelAdapter | None:
        """An adapter of an object handed over in Python, or None where this class does not know it."""
        return None

    @abstractmethod
    def load(self) -> nn.Module:
        """The full-precision module in eval mode, on the CPU. Raises `ModelError` with a way out."""

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The same module without its weights: cheap, and made before any weight is read."""

    @abstractmethod
    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Seeded inputs `(x, t, *cond)` of the right shapes."""

    def workload(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Inputs of the sizes that sampling gives it, which a call is counted and timed on: by default the example."""
        return self.example(batch)

    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The architecture as plain JSON data. It travels in artifacts."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of everything that determines the weights."""

    def call(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Call the module as `denoise(x, t, *cond)`."""
        output: Tensor = module(*inputs)
        return output

    def dynamic(self) -> tuple[tuple[int, ...], ...] | None:
        """Which dimensions of each example tensor may change; None means the first of each."""
        return None

    def signature(self) -> Mapping[str, Any] | None:
        """How the original class is called, as plain data, so that a loaded artifact can be called alike."""
        return None

    def cannot_sample(self) -> str | None:
        """Why no images can be drawn from this model, or None if they can."""
        return f"model {self.name!r} does not say how images are drawn from it"

    def unbatched(self) -> tuple[int, ...]:
        """Places in `example()` of inputs that have no batch: the same for every sample, such as positions."""
        return ()

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise a `RecipeError` where this model lacks what it is sampled with, such as prompts, or has no use for it.

        Only called where `cannot_sample()` is None.
        """
        if sampling.prompts or sampling.negative_prompt:
            raise RecipeError(f"sampling.prompts: model {self.name!r} takes no text; leave them out")
        if sampling.guidance != 1.0 or sampling.guidance_channels:
            check_guidance(sampling, guided=self.sampler().conditions((0,), sampling).empty is not None)

    def sampler(self) -> Sampler:
        """What sampling needs to know; only called where `cannot_sample()` is None."""
        raise ModelError(self.cannot_sample() or f"model {self.name!r} has no sampler")

    def sample(
        self,
        denoise: Denoise,
        *,
        seed: int,
        count: int,
        first: int = 0,
        sampling: Sampling,
        device: torch.device,
        stream: str = "evaluation",
        progress: Progress | None = None,
        title: str = "sample",
    ) -> Iterator[Tensor]:
        """Draw `count` images from number `first` on, as uint8 batches N x H x W x 3 on the CPU."""
        if reason := self.cannot_sample():
            raise ModelError(reason)
        sampler = self.sampler()
        if sampling.precision == "bfloat16":
            denoise = _in_bfloat16(denoise, device)
        if sampling.compiled:
            # one size of batch at a time: fixed shapes make faster code, and the last batch alone is another
            denoise = torch.compile(denoise, dynamic=False)
        with (progress or Progress()).task(title, count * sampling.steps) as task:
            for start in range(first, first + count, sampling.batch):
                indices = range(start, min(start + sampling.batch, first + count))
                x: Tensor | None = None
                for moment in trajectory(
                    denoise, sampler, sampling,
                    seed=seed, stream=stream, indices=indices, device=device,
                ):  # fmt: skip
                    x = moment.after
                    task.advance(len(indices))
                assert x is not None  # a sampling has at least one step
                if not x.isfinite().all():
                    raise ModelError(
                        f"images {indices[0]} to {indices[-1]} end as NaN or infinities: the model's outputs outgrow "
                        "their number format on the way; take a wider one (model.dtype, sampling.precision), or more "
                        "bits where they arise"
                    )
                yield sampler.decode(x).cpu()


def _in_bfloat16(denoise: Denoise, device: torch.device) -> Denoise:
    """The same function with its products in bf16; its weights and what is summed stay as they are."""

    def cast(*inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return denoise(*inputs)

    return cast
