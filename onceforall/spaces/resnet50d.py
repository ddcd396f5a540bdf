"""The ResNet-50D space of Once-for-All: elastic depth, bottleneck width, and output width of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from onceforall import serial
from onceforall.architecture import Gene
from onceforall.checks import check_integer, check_positive, check_share
from onceforall.errors import InvalidConfiguration
from onceforall.layers import (
    BottleneckSpec,
    ConvSpec,
    LayerSpec,
    LinearSpec,
    MaxPoolSpec,
    PoolSpec,
    make_divisible,
    scaled,
    strided_size,
)
from onceforall.sizes import Size
from onceforall.space import FEWEST_CLASSES, SearchSpace
from onceforall.spaces.units import ConvStage, ConvUnit

STEM_UNITS = 2


@dataclass(frozen=True)
class BottleneckStage(ConvStage):
    """A unit of bottleneck blocks; the first one has a shortcut of its own."""


@dataclass(frozen=True)
class ResNetSpace(SearchSpace):
    """A deep stem, stages of bottleneck blocks, global pooling, a linear classifier.

    The stem's elastic parts are units as well: unit 1 is its residual 3x3 convolution, which depth
    0 skips, and its multiplier scales the stem's middle channels; unit 2 is the last 3x3 convolution
    and the max pooling, and its multiplier scales the stem's output. The units after it are
    the stages; the expand ratio of a bottleneck is its middle by its output channels.
    """

    kind: ClassVar[str] = "resnet"

    units: tuple[ConvUnit, ...]
    name: str
    num_classes: int
    stem_width: int = 64
    dropout: float = 0.0
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_classes", self.num_classes, FEWEST_CLASSES)
        if not isinstance(self.name, str):
            raise InvalidConfiguration(f"name {self.name!r}: expected a string")
        check_integer("stem_width", self.stem_width, 1)
        check_share("dropout", self.dropout)
        check_positive("bn_eps", self.bn_eps)
        if len(self.stages) != len(self.units) - STEM_UNITS or not self.stages:
            raise InvalidConfiguration("a ResNet space has two units of the stem, and then stages")
        if any(unit.kernels != (3,) for unit in self.units):
            raise InvalidConfiguration("kernels of a ResNet space: 3 everywhere, as (3,)")
        if any(unit.expands != (1,) for unit in self.units[:STEM_UNITS]):
            raise InvalidConfiguration("expands of the stem's units: 1, as (1,)")
        if not set(self.units[0].depths) <= {0, 1} or self.units[1].depths != (2,):
            raise InvalidConfiguration(
                f"depths {self.units[0].depths} and {self.units[1].depths} of the stem's units: expected 0 or 1, and 2"
            )

    @property
    def stages(self) -> tuple[BottleneckStage, ...]:
        """The units after the stem."""
        return tuple(unit for unit in self.units[STEM_UNITS:] if isinstance(unit, BottleneckStage))

    def stem(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        return (ConvSpec(resolution, 3, self._middle(multiplier), 3, 2, "relu", bn_eps=self.bn_eps),)

    def block(
        self, resolution: Size, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> LayerSpec:
        size = strided_size(resolution, 2)
        if unit == 0:
            channels = self._middle(multiplier)
            return ConvSpec(size, channels, channels, 3, 1, "relu", bn_eps=self.bn_eps, shortcut=True)
        if unit == 1 and index == 0:
            return ConvSpec(
                size, self._middle(in_multiplier), scaled(self.stem_width, multiplier), 3, 1, "relu", bn_eps=self.bn_eps
            )
        if unit == 1:
            return MaxPoolSpec(size, scaled(self.stem_width, multiplier))
        stage = self.stages[unit - STEM_UNITS]
        before = stage.width if index else (self.stem_width, *(s.width for s in self.stages))[unit - STEM_UNITS]
        out_channels = scaled(stage.width, multiplier)
        return BottleneckSpec(
            self._stage_size(resolution, unit - STEM_UNITS + (index > 0)),
            scaled(before, in_multiplier),
            make_divisible(round(out_channels * gene.expand)),
            out_channels,
            1 if index else stage.stride,
            "relu",
            downsample=index == 0,
            bn_eps=self.bn_eps,
        )

    def head(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        channels = scaled(self.stages[-1].width, multiplier)
        pool = PoolSpec(self._stage_size(resolution, len(self.stages)), channels)
        return pool, LinearSpec(channels, self.num_classes, self.dropout)

    def _middle(self, multiplier: float) -> int:
        """Channels inside the stem: half of its output's with the same multiplier."""
        return make_divisible(scaled(self.stem_width, multiplier) // 2)

    def _stage_size(self, resolution: Size, stage: int) -> Size:
        """Feature-map size (px) entering a stage, or leaving the last."""
        size = strided_size(strided_size(resolution, 2), 2)
        for unit in self.stages[:stage]:
            size = strided_size(size, unit.stride)
        return size

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises InvalidConfiguration where the form is wrong."""
        fields = {key: item for key, item in value.items() if key != "type"}
        try:  # units are of two types, so that annotations do not tell
            stem, stages = fields["units"][:STEM_UNITS], fields["units"][STEM_UNITS:]
            units: tuple[ConvUnit, ...] = serial.from_json(tuple[ConvUnit, ...], stem, "units of a ResNet's stem")
            units += serial.from_json(tuple[BottleneckStage, ...], stages, "stages of a ResNet")
            return cls(**{**fields, "units": units})
        except (KeyError, TypeError) as error:
            raise InvalidConfiguration(f"not a ResNet space: {error}") from error


def resnet50d(
    resolutions: Sequence[int] = tuple(range(128, 257, 16)),
    num_classes: int = 1000,
    dropout: float = 0.0,
    *,
    lost_blocks: Sequence[int] = (0, 1, 2),
    expands: Sequence[float] = (0.2, 0.25, 0.35),
    width_multipliers: Sequence[float] = (0.65, 0.8, 1.0),
    stem_skip: bool = True,
) -> ResNetSpace:
    """The published space. Each stage loses up to two of (4, 4, 6, 4) blocks; `stem_skip` makes the stem elastic.

    Channels are rounded to 8, so of the stem's middle widths 0.65 and 0.8 are one and the same network.
    """
    widths: dict[str, Any] = {"width_multipliers": tuple(width_multipliers)}
    stem = (
        ConvUnit((0, 1) if stem_skip else (1,), (3,), (1,), **widths),
        ConvUnit((2,), (3,), (1,), **widths),
    )
    #        most blocks  channels  stride
    table: tuple[tuple[int, int, int], ...] = (
        (4, 256, 1),  # 56 px at 224
        (4, 512, 2),  # 56 -> 28
        (6, 1024, 2),  # 28 -> 14
        (4, 2048, 2),  # 14 -> 7
    )
    stages = (
        BottleneckStage(
            tuple(sorted(most - lost for lost in lost_blocks)), (3,), tuple(expands), width, stride, **widths
        )
        for most, width, stride in table
    )
    return ResNetSpace(tuple(resolutions), (*stem, *stages), "resnet50d", num_classes, dropout=dropout)
