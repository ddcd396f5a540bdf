"""Channel counts, and sizes of feature maps: a number where they are square, else (height, width), in px."""

from __future__ import annotations

import operator
from typing import Any

from onceforall.errors import InvalidConfiguration

Size = int | tuple[int, int]


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor` and at least 0.9 of `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def scaled(channels: int, multiplier: float) -> int:
    """Channels times a width multiplier, rounded as `make_divisible` does; untouched by a multiplier of 1."""
    return channels if multiplier == 1 else make_divisible(channels * multiplier)


def height_width(size: Size) -> tuple[int, int]:
    """Both numbers of a size."""
    return (size, size) if isinstance(size, int) else size


def pixels(size: Size) -> int:
    """Height times width."""
    return size**2 if isinstance(size, int) else size[0] * size[1]


def strided_size(size: Size, stride: int) -> Size:
    """Output size of a same-padded convolution; one number where it is square."""
    if isinstance(size, int):
        return (size - 1) // stride + 1
    return size_of([(side - 1) // stride + 1 for side in size])


def said(size: Size) -> str:
    """As keys and messages say it: "224", or "224x160" (height x width)."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def side(size: Size) -> float:
    """The side (px) of a square image of as many pixels: the number itself where it is one."""
    return size if isinstance(size, int) else pixels(size) ** 0.5


def parsed(text: str) -> Size:
    """The inverse of `said`. Raises ValueError."""
    height, _, width = text.partition("x")
    return (int(height), int(width)) if width else int(height)


def size_of(value: Any) -> Size:
    """An integer, or a pair of different ones, of what JSON or numpy have. Raises InvalidConfiguration."""
    try:
        if isinstance(value, list | tuple):
            height, width = map(operator.index, value)
            return height if height == width else (height, width)
        return operator.index(value)
    except (TypeError, ValueError):
        raise InvalidConfiguration(
            f"resolution {value!r:.200}: expected an integer, or height and width (px)"
        ) from None
