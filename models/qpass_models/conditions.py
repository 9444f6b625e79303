"""What a denoiser of diffusers is given beside x and t, for the numbered images of a sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from qpass.errors import RecipeError
from qpass.sampling import Conditions, Sampling, check_guidance
from qpass_models.text import Encoded, TextEncoders

FROM_TEXT = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "added_cond_kwargs.text_embeds",
    "txt_ids",
)
_SIZES = ("added_cond_kwargs.time_ids", "added_cond_kwargs.resolution", "added_cond_kwargs.aspect_ratio")
KNOWN = (*FROM_TEXT, *_SIZES, "class_labels", "img_ids", "guidance")
UNBATCHED = ("txt_ids", "img_ids")


@attrs.frozen(kw_only=True, eq=False)
class Conditioner:
    """Image i is of class i modulo the number of classes, or of prompt i modulo the number of prompts.

    `inputs` are the denoiser's beyond x and t; `pixels` is the images' height and width, `grid` the latents'.
    """

    inputs: tuple[str, ...]
    config: Mapping[str, Any]
    dtype: torch.dtype
    grid: tuple[int, int]
    pixels: tuple[int, int]
    texts: TextEncoders | None = None
    classes: Callable[[], Tensor] | None = None

    def __call__(self, indices: Sequence[int], sampling: Sampling) -> Conditions:
        """Those inputs, and where guidance has something to lead away from, those of no condition."""
        encoded = self._encoded(sampling) if "encoder_hidden_states" in self.inputs else None
        pairs = [self._pair(key, list(indices), sampling, encoded) for key in self.inputs]
        empty = tuple(other for _, other in pairs if other is not None)
        return Conditions(
            given=tuple(one for one, _ in pairs), empty=empty if pairs and len(empty) == len(pairs) else None
        )

    def check(self, sampling: Sampling) -> None:
        """Raise a `RecipeError` for prompts where there is no text, for none where there is, for idle guidance."""
        if self.texts is None and (sampling.prompts or sampling.negative_prompt):
            raise RecipeError("sampling.prompts: this model takes no text; leave prompts and negative_prompt out")
        if self.texts is not None and not sampling.prompts:
            raise RecipeError(
                'sampling.prompts: this model draws what a text says; give prompts = ["..."] in [sampling], or a '
                "file with one prompt a line"
            )
        guided = bool(self.inputs) and all(self._may_be_empty(key) for key in self.inputs)
        check_guidance(sampling, guided=guided, takes_it="guidance" in self.inputs)

    def _may_be_empty(self, key: str) -> bool:
        """Whether an input has a value for no condition; known before any text is encoded."""
        return _has_empty_class(self.config) if key == "class_labels" else key not in (*UNBATCHED, "guidance")

    def _encoded(self, sampling: Sampling) -> Encoded:
        if self.classes is not None:
            table = self.classes()[:, None]
            return Encoded(
                given={"encoder_hidden_states": table[:-1]}, empty={"encoder_hidden_states": table[-1:]}
            )
        self.check(sampling)
        assert self.texts is not None
        return self.texts(sampling.prompts, sampling.negative_prompt)

    def _pair(
        self, key: str, indices: list[int], sampling: Sampling, encoded: Encoded | None
    ) -> tuple[Tensor, Tensor | None]:
        """One input for some images, and the same of no condition."""
        count = len(indices)
        if key == "class_labels":
            return _labels(self.config, indices)
        if key == "img_ids":
            return positions(self.grid).to(self.dtype), None
        if key == "guidance":
            return torch.full((count,), sampling.guidance), None
        if key in _SIZES:
            one = torch.tensor([self._sizes(key)]).to(self.dtype).expand(count, -1)
            return one, one
        assert encoded is not None
        if key == "txt_ids":
            return encoded.given[key].to(self.dtype), None
        table = encoded.given[key].to(self.dtype)
        empty = encoded.empty.get(key)
        rows = table[torch.tensor(indices) % len(table)]
        return rows, None if empty is None else empty.to(self.dtype).expand_as(rows)

    def _sizes(self, key: str) -> list[float]:
        """SDXL's sizes and crop, or PixArt's resolution and aspect ratio, of an image drawn whole."""
        height, width = (float(side) for side in self.pixels)
        if key.endswith("time_ids"):
            return [height, width, 0.0, 0.0, height, width]
        return [height, width] if key.endswith("resolution") else [height / width]


def positions(grid: tuple[int, int]) -> Tensor:
    """Row and column of each 2 x 2 patch of Flux's latents, as (0, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0] // 2), torch.arange(grid[1] // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def _labels(config: Mapping[str, Any], indices: list[int]) -> tuple[Tensor, Tensor | None]:
    """Class labels in turn. diffusers' DiT keeps one more row in its table, for no class."""
    count = int(config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 1)
    given = torch.tensor([i % count for i in indices])
    return given, torch.full_like(given, count) if _has_empty_class(config) else None


def _has_empty_class(config: Mapping[str, Any]) -> bool:
    return config.get("num_embeds_ada_norm") is not None
