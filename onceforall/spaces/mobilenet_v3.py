"""MobileNetV3 spaces (paper, section 4.1): the stage tables as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onceforall.layers import Activation, make_divisible
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage

DEPTHS, KERNELS, EXPANDS = (2, 3, 4), (3, 5, 7), (3, 4, 6)
RESOLUTIONS = tuple(range(128, 225, 4))


def mobilenet_v3(
    width: float = 1.0,
    resolutions: Sequence[int] = RESOLUTIONS,
    num_classes: int = 1000,
    dropout: float = 0.1,
    *,
    depths: Sequence[int] = DEPTHS,
    kernels: Sequence[int] = KERNELS,
    expands: Sequence[float] = EXPANDS,
    width_multipliers: Sequence[float] = (1.0,),
    tied: bool = False,
) -> InvertedResidualSpace:
    """The published space: 7371^5 sub-networks a resolution, for 128 to 224 px images.

    `width` scales every channel count (the authors released 1.0 and 1.2). Two forms that the paper
    does not have: `width_multipliers`, as (0.25, 0.5, 0.75, 1), scale the channels of each unit by
    choice, a coarser elastic width; `tied` joins depth and expand ratio in a unit, 2 with 3, 3 with
    4, 4 with 6.
    """

    def channels(base: int) -> int:
        return make_divisible(base * width)

    #           channels    stride  activation  squeeze-excite
    table: list[tuple[int, int, Activation, bool]] = [
        (channels(24), 2, "relu", False),  # 112 -> 56 px at 224
        (channels(40), 2, "relu", True),  # 56 -> 28
        (channels(80), 2, "h_swish", False),  # 28 -> 14
        (channels(112), 1, "h_swish", True),  # 14
        (channels(160), 2, "h_swish", True),  # 14 -> 7
    ]
    choices: dict[str, Any] = {
        "depths": tuple(depths),
        "kernels": tuple(kernels),
        "expands": tuple(expands),
        "width_multipliers": tuple(width_multipliers),
        "tied": tied,
    }
    return InvertedResidualSpace(
        resolutions=tuple(resolutions),
        units=tuple(
            Stage(width=width, stride=stride, activation=act, squeeze_excite=se, **choices)
            for width, stride, act, se in table
        ),
        name=f"mobilenet_v3_w{width}",
        stem_width=channels(16),
        stem_stride=2,  # 224 -> 112
        first=FirstBlock(channels(16), 1, "relu", shortcut=True),
        final_width=channels(960),
        mix_width=channels(1280),
        activation="h_swish",
        num_classes=num_classes,
        dropout=dropout,
    )


def mobilenet_v3_small_images(
    resolutions: Sequence[int] = (20, 24, 28, 32), num_classes: int = 10, dropout: float = 0.0
) -> InvertedResidualSpace:
    """The same blocks for 32 px images: a stride-1 stem, then two early strides.

    On a processor an image costs what its wide feature maps cost, so the fixed block and the first
    unit both halve the size before the widest layers begin.
    """
    table: list[tuple[int, int, Activation, bool]] = [
        (24, 2, "h_swish", False),  # 16 -> 8 px at 32
        (40, 1, "h_swish", True),  # 8
        (80, 2, "h_swish", True),  # 8 -> 4
    ]
    return InvertedResidualSpace(
        resolutions=tuple(resolutions),
        units=tuple(Stage(DEPTHS, KERNELS, EXPANDS, *row) for row in table),
        name="mobilenet_v3_small_images",
        stem_width=16,
        stem_stride=1,  # 32
        first=FirstBlock(24, 2, "h_swish", shortcut=False),  # 32 -> 16
        final_width=480,
        mix_width=0,
        activation="h_swish",
        num_classes=num_classes,
        dropout=dropout,
    )
