"""MobileNetV3 spaces (paper, section 4.1): the stage tables as data."""

from __future__ import annotations

from collections.abc import Sequence

from onceforall.layers import make_divisible
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage

DEPTHS, KERNELS, EXPANDS = (2, 3, 4), (3, 5, 7), (3, 4, 6)


def mobilenet_v3(
    width: float = 1.0,
    resolutions: Sequence[int] = tuple(range(128, 225, 4)),
    num_classes: int = 1000,
    dropout: float = 0.1,
) -> InvertedResidualSpace:
    """The published space: 7371^5 sub-networks a resolution, for 128 to 224 px images.

    `width` scales every channel count (the authors released 1.0 and 1.2).
    """

    def channels(base: int) -> int:
        return make_divisible(base * width)

    #           channels    stride  activation  squeeze-excite
    table = (
        (channels(24), 2, "relu", False),  # 112 -> 56 px at 224
        (channels(40), 2, "relu", True),  # 56 -> 28
        (channels(80), 2, "h_swish", False),  # 28 -> 14
        (channels(112), 1, "h_swish", True),  # 14
        (channels(160), 2, "h_swish", True),  # 14 -> 7
    )
    return InvertedResidualSpace(
        resolutions=tuple(resolutions),
        units=_stages(table),
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
    table = (
        (24, 2, "h_swish", False),  # 16 -> 8 px at 32
        (40, 1, "h_swish", True),  # 8
        (80, 2, "h_swish", True),  # 8 -> 4
    )
    return InvertedResidualSpace(
        resolutions=tuple(resolutions),
        units=_stages(table),
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


def _stages(table: Sequence[tuple]) -> tuple[Stage, ...]:  # type: ignore[type-arg]
    return tuple(Stage(DEPTHS, KERNELS, EXPANDS, *row) for row in table)
