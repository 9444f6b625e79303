"""The `[sampling]` section of a recipe: which scheduler takes which steps, with what guidance, from which text."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators as v

from qpass.errors import RecipeError

# the spacings that each scheduler takes; "model" is whatever the model's own schedule says
SPACINGS: dict[str, tuple[str, ...]] = {
    "ddim": ("model", "leading", "trailing", "linspace", "uniform", "quadratic"),
    "ddpm": ("model", "leading", "trailing", "linspace", "uniform"),
    "dpm-solver++": ("model", "leading", "trailing", "linspace"),
    "unipc": ("model", "leading", "trailing", "linspace"),
    "euler-flow": ("model", "trailing", "linspace"),
}
SOLVERS = ("dpm-solver++", "unipc")
MAX_PROMPTS_FILE = 64 * 1024 * 1024


def read_prompts(given: tuple[str, ...] | str) -> tuple[str, ...]:
    """The prompts themselves, or those in a text file, one a line; from then on the recipe holds them."""
    if not isinstance(given, str):
        return tuple(given)
    path = Path(given).expanduser()
    try:
        if path.stat().st_size > MAX_PROMPTS_FILE:
            raise RecipeError(f"prompts: {given!r} is over 64 MB; it should hold one prompt a line", "sampling")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # no such file, no UTF-8, a NUL in the name
        raise RecipeError(
            f'prompts: {given!r} cannot be read ({error}); give a text file, one prompt a line, or a list ["..."]',
            "sampling",
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise RecipeError(f"prompts: {given!r} holds no prompt; write one a line", "sampling")
    return prompts


@attrs.frozen(kw_only=True)
class Sampling:
    """How images are drawn: the `[sampling]` section of a recipe.

    Spacing places the steps on the T timesteps the model was trained on. "leading", "trailing" and "linspace" are
    diffusers' (and table 2 of 2305.08891); "model" is the one that the model's schedule names. "uniform" is floor(i
    T / n), the DDIM and LDM releases' `uniform` wherever n divides T; "quadratic" is their `quad`, floor of
    linspace(0, sqrt(0.8 T), n)², whose first steps may repeat a timestep. Both add the schedule's `steps_offset`: 1
    in the LDM release, 0 in the DDIM release.

    Where a model's schedule clips, a quantized model's images may turn grey: the first steps' x0 is its output's error
    many times over, and clipping that takes the mean colour with it (passes/RESULTS.md).

    Guidance s means e = e_empty + s (e_given - e_empty). Flux, which was trained on its guidance, gets s as an input.
    """

    scheduler: str = attrs.field(
        default="ddim",
        validator=v.in_(tuple(SPACINGS)),
        metadata={
            "help": "ddim, ddpm, dpm-solver++, unipc, or euler-flow for rectified flows such as SD3 and Flux"
        },
    )
    steps: int = attrs.field(default=20, validator=v.ge(1), metadata={"help": "denoising steps per image"})
    spacing: str = attrs.field(
        default="model",
        validator=v.in_(tuple(dict.fromkeys(name for names in SPACINGS.values() for name in names))),
        metadata={"help": "where the steps lie among the timesteps; by default where the model's schedule says"},
    )
    eta: float = attrs.field(
        default=0.0,
        validator=[v.ge(0.0), v.le(1.0)],
        metadata={"help": "DDIM's share of fresh noise at each step; 0 is deterministic"},
    )
    order: int = attrs.field(
        default=0,
        validator=[v.ge(0), v.le(3)],
        metadata={"help": "order of dpm-solver++ and unipc, 1 to 3; 0 is the model's, else 2"},
    )
    variance: str = attrs.field(
        default="model",
        validator=v.in_(("model", "fixed-small", "fixed-large", "learned-range")),
        metadata={"help": "DDPM's noise at each step; learned-range is the model's own, as in the DiT release"},
    )
    clip: str = attrs.field(
        default="model",
        validator=v.in_(("model", "always", "never")),
        metadata={
            "help": "clip the predicted image to its range at each step: as the model's schedule says, or always, or "
            "never, as in the DDIM release"
        },
    )
    guidance: float = attrs.field(
        default=1.0,
        validator=v.ge(0.0),
        metadata={"help": "classifier-free guidance; 1 calls the model once per step, others twice"},
    )
    guidance_channels: int = attrs.field(
        default=0,
        validator=v.ge(0),
        metadata={"help": "guide only the first so many channels; 0 is all, 3 is what the DiT release does"},
    )
    prompts: tuple[str, ...] = attrs.field(
        default=(),
        converter=read_prompts,
        metadata={"help": "texts to draw, or a file with one a line; image i is of prompt i modulo their number"},
    )
    negative_prompt: str = attrs.field(default="", metadata={"help": "the text that guidance leads away from"})
    batch: int = attrs.field(default=64, validator=v.ge(1), metadata={"help": "images drawn at a time"})
    compiled: bool = attrs.field(
        default=False,
        validator=v.instance_of(bool),
        metadata={
            "help": "compile the model that draws: takes a minute or two, and pays from some hundred images on"
        },
    )
    precision: str = attrs.field(
        default="model",
        validator=v.in_(("model", "bfloat16")),
        metadata={
            "help": "bfloat16: what draws multiplies in bf16, twice as fast where the machine has instructions for it"
        },
    )

    def __attrs_post_init__(self) -> None:
        known = SPACINGS[self.scheduler]
        if self.spacing not in known:
            raise RecipeError(
                f"spacing {self.spacing!r} is not for {self.scheduler}, which takes {', '.join(known)}", "sampling"
            )
        for option, default, wanted in (
            ("eta", 0.0, ("ddim",)),
            ("variance", "model", ("ddpm",)),
            ("clip", "model", ("ddim", "ddpm")),
            ("order", 0, SOLVERS),
        ):
            if getattr(self, option) != default and self.scheduler not in wanted:
                raise RecipeError(
                    f"{option} is for {' and '.join(wanted)}, not for {self.scheduler}; leave it out", "sampling"
                )


def check_guidance(sampling: Sampling, *, guided: bool, takes_it: bool = False) -> None:
    """Raise a `RecipeError` where guidance would change nothing, and be written into reports all the same.

    `guided` says that the model can be called without its condition; `takes_it`, that guidance is one of its inputs.
    """
    if sampling.guidance != 1.0 and not guided and not takes_it:
        raise RecipeError(
            f"sampling.guidance: {sampling.guidance} would change nothing, as this model has no condition that can "
            "be left out; leave guidance out"
        )
    for option in ("guidance_channels", "negative_prompt"):
        if (value := getattr(sampling, option)) and (sampling.guidance == 1.0 or not guided):
            why = "nothing is guided at guidance 1" if guided else "this model is not guided by a second call"
            raise RecipeError(f"sampling.{option}: {value!r} would change nothing, as {why}; leave it out")
