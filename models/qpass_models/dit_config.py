"""The dimensions of a DiT, and the twelve published sizes (Peebles and Xie, arXiv:2212.09748, Table 1)."""

from __future__ import annotations

import attrs

from qpass.errors import ModelError


@attrs.frozen(kw_only=True)
class DiTConfig:
    """The dimensions of one DiT; the defaults are those of the 256x256 ImageNet models.

    >>> SIZES["DiT-XL/2"].width
    1152
    >>> attrs.evolve(SIZES["DiT-XL/2"], input_size=64).tokens  # the 512x512 model
    1024
    """

    depth: int
    width: int
    heads: int
    patch_size: int
    input_size: int = 32
    in_channels: int = 4
    num_classes: int = 1000
    learn_sigma: bool = True

    def __attrs_post_init__(self) -> None:
        for name in ("depth", "width", "heads", "patch_size", "input_size", "in_channels", "num_classes"):
            if getattr(self, name) < 1:
                raise ModelError(f"DiT: {name} must be at least 1, got {getattr(self, name)}")
        for divisor, name in (("heads", "width"), ("patch_size", "input_size")):
            if getattr(self, name) % getattr(self, divisor):
                got = f"{divisor} {getattr(self, divisor)} and {name} {getattr(self, name)}"
                raise ModelError(f"DiT: {divisor} must divide {name}, got {got}")
        if self.width % 4:  # sine and cosine of row and column
            raise ModelError(f"DiT: width must be a multiple of 4, got {self.width}")

    @property
    def grid(self) -> int:
        return self.input_size // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2

    @property
    def out_channels(self) -> int:
        return 2 * self.in_channels if self.learn_sigma else self.in_channels


def _sizes(letter: str, depth: int, width: int, heads: int) -> dict[str, DiTConfig]:
    return {f"DiT-{letter}/{p}": DiTConfig(depth=depth, width=width, heads=heads, patch_size=p) for p in (2, 4, 8)}


SIZES = {
    **_sizes("S", 12, 384, 6),
    **_sizes("B", 12, 768, 12),
    **_sizes("L", 24, 1024, 16),
    **_sizes("XL", 28, 1152, 16),
}
