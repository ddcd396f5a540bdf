"""Spaces made of inverted residual blocks: a stage table, and its lowering to layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, get_args

from onceforall.architecture import Gene
from onceforall.checks import check_integer, check_positive, check_share
from onceforall.errors import InvalidConfiguration
from onceforall.layers import (
    Activation,
    ConvSpec,
    LayerSpec,
    LinearSpec,
    MBConvSpec,
    PoolSpec,
    make_divisible,
    scaled,
    strided_size,
)
from onceforall.sizes import Size
from onceforall.space import FEWEST_CLASSES, SearchSpace
from onceforall.spaces.units import MOST_STRIDE, ConvStage


@dataclass(frozen=True)
class Stage(ConvStage):
    """One row of a stage table: a unit of inverted residual blocks, `width` channels wide.

    The first block has the stride and no shortcut; the others have stride 1 and a shortcut. A width
    multiplier scales the output channels of all blocks, and so the input and middle channels of
    those that read them.
    """

    activation: Activation
    squeeze_excite: bool


@dataclass(frozen=True)
class FirstBlock:
    """The fixed block after the stem: expand ratio 1, 3x3, with a shortcut where shapes allow and it is wanted."""

    width: int
    stride: int
    activation: Activation
    shortcut: bool

    def __post_init__(self) -> None:
        check_integer("width of the first block", self.width, 1)
        check_integer("stride of the first block", self.stride, 1, MOST_STRIDE)


@dataclass(frozen=True)
class InvertedResidualSpace(SearchSpace):
    """MobileNetV3, ProxylessNAS and their relatives: stem, a fixed block, elastic units, head.

    The head is a 1x1 convolution to `final_width`, global average pooling, a 1x1 convolution
    without batch norm to `mix_width` (0: none), and a linear classifier.
    """

    kind: ClassVar[str] = "inverted_residual"

    units: tuple[Stage, ...]
    name: str
    stem_width: int
    stem_stride: int
    first: FirstBlock
    final_width: int
    mix_width: int
    activation: Activation
    num_classes: int
    dropout: float = 0.1
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_classes", self.num_classes, FEWEST_CLASSES)
        check_integer("stem_stride", self.stem_stride, 1, MOST_STRIDE)
        for name, least in (("stem_width", 1), ("final_width", 1), ("mix_width", 0)):
            check_integer(name, getattr(self, name), least)
        check_share("dropout", self.dropout)
        check_positive("bn_eps", self.bn_eps)
        for activation in (self.activation, self.first.activation, *(stage.activation for stage in self.units)):
            if activation not in get_args(Activation):
                raise InvalidConfiguration(f"activation {activation!r}: choices are {', '.join(get_args(Activation))}")

    def stem(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        size = strided_size(resolution, self.stem_stride)
        first = self.first
        return (
            ConvSpec(resolution, 3, self.stem_width, 3, self.stem_stride, self.activation, bn_eps=self.bn_eps),
            MBConvSpec(
                size,
                self.stem_width,
                self.stem_width,
                first.width,
                3,
                first.stride,
                first.activation,
                se_channels=0,
                shortcut=first.shortcut and first.stride == 1 and first.width == self.stem_width,
                expanded=False,
                bn_eps=self.bn_eps,
            ),
        )

    def block(
        self, resolution: Size, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> LayerSpec:
        stage = self.units[unit]
        in_channels = scaled(stage.width if index else self._in_widths[unit], in_multiplier)
        mid_channels = make_divisible(round(in_channels * gene.expand))
        return MBConvSpec(
            self._in_size(resolution, unit, index),
            in_channels,
            mid_channels,
            scaled(stage.width, multiplier),
            gene.kernel,
            1 if index else stage.stride,
            stage.activation,
            se_channels=make_divisible(mid_channels // 4) if stage.squeeze_excite else 0,
            shortcut=index > 0,
            bn_eps=self.bn_eps,
        )

    def head(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        size = self._in_size(resolution, len(self.units), 0)
        width = scaled(self.units[-1].width, multiplier)
        expand = ConvSpec(size, width, self.final_width, 1, 1, self.activation, bn_eps=self.bn_eps)
        features = self.mix_width or self.final_width
        mix = (
            (ConvSpec(1, self.final_width, self.mix_width, 1, 1, self.activation, batch_norm=False),)
            if self.mix_width
            else ()
        )
        return (
            expand,
            PoolSpec(size, self.final_width),
            *mix,
            LinearSpec(features, self.num_classes, self.dropout),
        )

    @cached_property
    def _in_widths(self) -> tuple[int, ...]:
        return (self.first.width, *(stage.width for stage in self.units[:-1]))

    def _in_size(self, resolution: Size, unit: int, index: int) -> Size:
        """Feature-map size (px) entering a block; `unit` may be one past the last."""
        size = strided_size(strided_size(resolution, self.stem_stride), self.first.stride)
        for stage in self.units[: unit + (index > 0)]:
            size = strided_size(size, stage.stride)
        return size
