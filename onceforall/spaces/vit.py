"""Vision transformers with elastic depth, width, heads and MLP ratio (Chen et al., "AutoFormer", ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onceforall.architecture import Gene
from onceforall.checks import check_integer, check_share, is_positive
from onceforall.choices import Unit, ascending
from onceforall.errors import InvalidConfiguration
from onceforall.layers import LayerSpec, LinearSpec
from onceforall.layers.transformer import EncoderSpec, PatchSpec, TokenPoolSpec
from onceforall.sizes import Size, height_width, pixels, scaled, size_of
from onceforall.space import FEWEST_CLASSES, SearchSpace


@dataclass(frozen=True)
class ViTSpace(SearchSpace):
    """Patches, one unit of encoder blocks, pooling of tokens, a linear classifier.

    The unit's width multiplier scales `width`, the channels of all tokens; each block chooses "heads", of
    `head_channels` each, and "ratio", its MLP's middle by its outer channels. `patches`: pairs of a
    resolution and the side of its patches (px). `class_token`: the classifier reads that, else the mean of all tokens.
    """

    kind: ClassVar[str] = "vit"

    units: tuple[Unit, ...]
    name: str
    width: int
    patches: tuple[tuple[Size, int], ...]
    head_channels: int
    num_classes: int
    class_token: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patches", tuple((size_of(size), patch) for size, patch in self.patches))
        super().__post_init__()
        check_integer("num_classes", self.num_classes, FEWEST_CLASSES)
        (unit, *others) = self.units
        if others or set(unit.choices) != {"heads", "ratio"}:
            raise InvalidConfiguration(
                f"{len(self.units)} units with the choices {', '.join(unit.choices)}: a vision transformer has one "
                "unit of blocks that choose heads and ratio"
            )
        ascending("heads", unit.choices["heads"], lambda n: isinstance(n, int) and n > 0, "positive integers")
        ascending("ratio", unit.choices["ratio"], is_positive, "positive numbers")
        check_integer("width", self.width, 1)
        check_integer("head_channels", self.head_channels, 1)
        check_share("dropout", self.dropout)
        for size in self.resolutions:
            patch = dict(self.patches).get(size)
            if not isinstance(patch, int) or patch < 1 or any(side % patch for side in height_width(size)):
                raise InvalidConfiguration(f"patch {patch} at resolution {size}: expected a divisor of it (px)")
        tokens = [pixels(self._tokens(size)) for size in self.resolutions]
        if tokens != sorted(tokens):
            raise InvalidConfiguration(
                f"patches {self.patches}: a larger image has fewer tokens ({tokens}); give it smaller patches"
            )

    def stem(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        patch = dict(self.patches)[resolution]
        return (PatchSpec(resolution, scaled(self.width, multiplier), patch, self.class_token),)

    def block(
        self, resolution: Size, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> LayerSpec:
        channels = scaled(self.width, multiplier)
        return EncoderSpec(
            self._tokens(resolution), channels, int(gene.heads), self.head_channels, round(channels * gene.ratio)
        )

    def head(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        channels = scaled(self.width, multiplier)
        pool = TokenPoolSpec(self._tokens(resolution), channels, self.class_token)
        return pool, LinearSpec(channels, self.num_classes, self.dropout)

    def _tokens(self, resolution: Size) -> Size:
        return self.stem(resolution)[0].out_size


def vit(
    resolutions: Sequence[Size] = (224,),
    num_classes: int = 1000,
    dropout: float = 0.0,
    *,
    patches: Sequence[int] | None = None,
    width: int = 240,
    width_multipliers: Sequence[float] = (0.8, 0.9, 1.0),
    depths: Sequence[int] = (12, 13, 14),
    heads: Sequence[int] = (3, 4),
    ratios: Sequence[float] = (3.5, 4),
    head_channels: int = 64,
    class_token: bool = True,
) -> ViTSpace:
    """AutoFormer's tiny space: 192 to 240 channels, 12 to 14 blocks, 3 or 4 heads of 64 channels, MLP ratio 3.5 or 4.

    `patches` are 16 px, unless their side is given for each resolution. With `width=192, width_multipliers=(1,),
    depths=(12,), heads=(3,), ratios=(4,)` it is one network, DeiT-Ti (Touvron et al., ICML 2021).
    """
    choices = {"heads": tuple(heads), "ratio": tuple(ratios)}
    unit = Unit(tuple(depths), choices, width_multipliers=tuple(width_multipliers))
    sides = (16,) * len(resolutions) if patches is None else patches
    if len(sides) != len(resolutions):
        raise InvalidConfiguration(f"patches {tuple(sides)}: expected one for each resolution {tuple(resolutions)}")
    return ViTSpace(
        tuple(resolutions),
        (unit,),
        f"vit_w{width}",
        width,
        tuple(zip(resolutions, sides, strict=True)),
        head_channels,
        num_classes,
        class_token,
        dropout,
    )


def vit_small_images(
    resolutions: Sequence[Size] = (20, 24, 28, 32), num_classes: int = 10, dropout: float = 0.0
) -> ViTSpace:
    """A small one for 32 px images: patches of 4 px, 64 to 128 channels, 2 to 6 blocks, 2 to 4 heads of 32 channels."""
    return vit(
        resolutions,
        num_classes,
        dropout,
        patches=(4,) * len(resolutions),
        width=128,
        width_multipliers=(0.5, 0.75, 1.0),
        depths=(2, 3, 4, 5, 6),
        heads=(2, 3, 4),
        ratios=(1, 1.5, 2),
        head_channels=32,
        class_token=False,
    )
