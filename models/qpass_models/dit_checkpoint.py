"""Load a DiT checkpoint: the file alone says which DiT it is.

The published ones are `DiT-XL-2-256x256.pt` and `DiT-XL-2-512x512.pt`: plain state dicts. Checkpoints of the
original training script, which keep the weights under "ema" and "model", load as well ("ema" wins), and so do
`.safetensors` files in the same layout. Nothing in the file is ever executed.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qpass.errors import ModelError, did_you_mean
from qpass_models.dit import DiT
from qpass_models.dit_config import SIZES, DiTConfig

HEADS = {config.width: config.heads for config in SIZES.values()}  # no weight's shape tells the heads
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
LISTED = 3  # names shown in an error before "..."


def load_dit(path: str | Path, size: str | None = None, heads: int | None = None) -> DiT:
    """The model in the checkpoint at `path`, in eval mode, on the CPU, in the checkpoint's own dtype.

    Every dimension is read off the weights. `size` ("DiT-XL/2") asks that the checkpoint be of that size;
    `heads` is needed only for a width that no published model has. Weights stay mapped to the file where its
    format allows.
    """
    if size is not None and size not in SIZES:
        raise ModelError(f"size must be a published DiT, got {size!r}; {did_you_mean(size, SIZES)}")
    path = Path(path)
    try:
        state = weights(read(path))
        config = infer_config(state, heads)
        if size is not None:
            check_size(config, size)
        return assemble(state, config)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def read(path: Path) -> object:
    """Whatever the file holds, read without running any code from it."""
    if not path.is_file():
        raise ModelError("no such file; give the path of a DiT checkpoint such as DiT-XL-2-256x256.pt")
    if path.suffix != ".safetensors" and path.suffix not in PICKLES:
        known = ", ".join((".safetensors", *PICKLES))
        raise ModelError(
            f"a DiT checkpoint must end in one of {known}, got {path.suffix or 'no ending'!r}; rename it"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The training script stores its options beside the weights; a Namespace only holds attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except PermissionError as error:
        # Not every OSError: torch raises one when it seeks outside a file that was cut short.
        raise ModelError(f"cannot be read ({error}); change its permissions") from error
    except Exception as error:
        # The bytes are foreign, and parsers fail on them with anything from EOFError to KeyError.
        if isinstance(error, pickle.UnpicklingError) and (name := forbidden(error)):
            raise ModelError(
                f"holds {name}, which is no weight and could run code, so it was not loaded; if you trust "
                "its origin, convert it once: safetensors.torch.save_file(torch.load(path, "
                'weights_only=False)["ema"], "dit.safetensors"), with the key that holds the weights'
            ) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise ModelError(
            f"damaged, cut short or not a checkpoint ({reason}); download or save it again"
        ) from error


def forbidden(error: pickle.UnpicklingError) -> str | None:
    """The class or function torch refused to load, if that is what `error` says."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return found[1]
    found = re.search(r"Trying to call reduce|Can only (?:create|build)", str(error))
    return "an unknown object" if found else None


def weights(loaded: object) -> dict[str, Tensor]:
    """The state dict among what a checkpoint holds: itself, or under "ema" (preferred) or "model"."""
    if isinstance(loaded, Mapping):
        inner = (loaded.get(key) for key in ("ema", "model"))
        loaded = next((value for value in inner if isinstance(value, Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise ModelError(
            f"a DiT checkpoint must hold a state dict, got {type(loaded).__name__}; save state_dict()"
        )
    return {str(name): value for name, value in loaded.items()}


def infer_config(state: Mapping[str, Tensor], heads: int | None = None) -> DiTConfig:
    """The dimensions of the DiT whose weights `state` holds."""
    check_layout(state)
    width, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    if heads is None:
        if width not in HEADS:
            known = ", ".join(map(str, HEADS))
            raise ModelError(
                f"heads are known for the published widths ({known}), not for width {width}; pass heads="
            )
        heads = HEADS[width]
    tokens = state["pos_embed"].shape[1]
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise ModelError(
            f"pos_embed must hold a square grid of tokens, got {tokens}; only square inputs are supported"
        )
    return DiTConfig(
        depth=depth_of(state),
        width=width,
        heads=heads,
        patch_size=patch_size,
        input_size=grid * patch_size,
        in_channels=in_channels,
        num_classes=state["y_embedder.embedding_table.weight"].shape[0] - 1,
        learn_sigma=state["final_layer.linear.weight"].shape[0] == 2 * in_channels * patch_size**2,
    )


def depth_of(state: Mapping[str, object]) -> int:
    """How many blocks `state` names. A gap in their numbers then shows as missing keys."""
    return len({found[1] for name in state if (found := re.match(r"blocks\.(\d+)\.", name))})


def check_layout(state: Mapping[str, Tensor]) -> None:
    """Refuse a state dict whose names, kinds, dtypes or numbers of dimensions are not a DiT's."""
    with torch.device("meta"):
        some = DiT(DiTConfig(depth=max(1, depth_of(state)), width=4, heads=1, patch_size=1, input_size=1))
    expected = some.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        hint = "check that it is the original DiT release's layout"
        if any(name.startswith("transformer_blocks.") for name in state):
            hint = 'this is diffusers\' layout: load its folder with use = "diffusers"'
        raise ModelError(f"not a DiT state dict: missing {first(missing)}; unexpected {first(unexpected)}; {hint}")
    dtypes = set()
    for name, like in expected.items():
        value = state[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"{name} must be a floating-point tensor, got {kind}; load the unquantized checkpoint"
            )
        if value.ndim != like.ndim:
            raise ModelError(f"{name} must have {like.ndim} dimensions, got shape {tuple(value.shape)}")
        dtypes.add(str(value.dtype))
    if len(dtypes) > 1:
        raise ModelError(f"weights must share one dtype, got {', '.join(sorted(dtypes))}; convert them to one")


def first(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f", ... ({len(names)} in all)" if len(names) > LISTED else "") or "none"


def check_size(config: DiTConfig, size: str) -> None:
    wanted = SIZES[size]
    for name in ("depth", "width", "heads", "patch_size"):
        if (got := getattr(config, name)) != (want := getattr(wanted, name)):
            raise ModelError(
                f"{size} has {name} {want}, this checkpoint {got}; leave size out or choose another file"
            )


def assemble(state: Mapping[str, Tensor], config: DiTConfig) -> DiT:
    """A DiT that holds the very tensors of `state`; nothing is initialised or copied."""
    with torch.device("meta"):
        model = DiT(config)
    for name, like in model.state_dict().items():
        if (got := tuple(state[name].shape)) != (want := tuple(like.shape)):
            raise ModelError(f"{name} must have shape {want} to fit the other weights, got {got}")
    model.load_state_dict(state, assign=True)
    return model.eval()
