"""A space with a layer of its own: fused inverted residual blocks (Gupta and Tan, "EfficientNet-EdgeTPU", 2019).

ofa train --space fused --out runs/fused
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from onceforall import layers, spaces
from onceforall.architecture import Gene
from onceforall.choices import Unit
from onceforall.layers import Layer, LinearSpec, Operation, PoolSpec, addition, convolution
from onceforall.sizes import Size, pixels, strided_size
from onceforall.space import SearchSpace


@dataclass(frozen=True, slots=True)
class FusedSpec(Layer):
    """A dense 3x3 convolution to the middle channels, then 1x1 to the output channels, plus the input where it fits."""

    in_size: Size
    in_channels: int
    mid_channels: int
    out_channels: int
    stride: int

    @property
    def out_size(self) -> Size:
        return strided_size(self.in_size, self.stride)

    @property
    def shortcut(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def operations(self) -> tuple[Operation, ...]:
        held = self.in_channels * pixels(self.in_size) if self.shortcut else 0
        first = convolution(self.in_channels, self.mid_channels, self.in_size, 3, self.stride, activation="relu")
        second = convolution(self.mid_channels, self.out_channels, self.out_size, held=held)
        sums = (addition(self.out_channels, self.out_size, held),) if self.shortcut else ()
        return (first, second, *sums)


class Fused(nn.Module):
    """The layer in torch. Its arguments are called as fields of its spec; smaller forms take leading channels."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.wide = nn.Conv2d(in_channels, mid_channels, 3, stride, 1, bias=False)
        self.wide_norm = nn.BatchNorm2d(mid_channels)
        self.narrow = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.narrow_norm = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow_norm(self.narrow(self.wide_norm(self.wide(x)).relu()))
        return x + y if self.shortcut else y


layers.register("fused", FusedSpec, Fused)


@dataclass(frozen=True)
class FusedSpace(SearchSpace):
    """Units of fused blocks, 16, 32, ... channels wide, each of which halves the feature map."""

    kind: ClassVar[str] = "fused"

    units: tuple[Unit, ...]
    num_classes: int

    def stem(self, resolution: Size, multiplier: float = 1) -> tuple[Layer, ...]:
        return (FusedSpec(resolution, 3, 16, 16, 1),)

    def block(
        self, resolution: Size, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> Layer:
        width = 16 * 2**unit
        before = width if index else max(16, width // 2)
        size = strided_size(resolution, 2 ** (unit + (index > 0)))
        return FusedSpec(size, before, int(before * gene.expand), width, 1 if index else 2)

    def head(self, resolution: Size, multiplier: float = 1) -> tuple[Layer, ...]:
        width = 16 * 2 ** (len(self.units) - 1)
        return PoolSpec(strided_size(resolution, 2 ** len(self.units)), width), LinearSpec(width, self.num_classes)


spaces.register(FusedSpace.kind, FusedSpace.from_json)  # so that files of this space can be read


def fused(resolutions: Sequence[int] = (24, 32), num_classes: int = 10) -> FusedSpace:
    """Two units of one to three blocks, with expand ratios 1, 2 and 4."""
    return FusedSpace(tuple(resolutions), (Unit((1, 2, 3), {"expand": (1, 2, 4)}),) * 2, num_classes)
