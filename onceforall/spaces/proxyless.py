"""The ProxylessNAS space (Once-for-All's second one): inverted residual blocks with ReLU6, no squeeze-excite."""

from __future__ import annotations

from collections.abc import Sequence

from onceforall.layers import make_divisible
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage
from onceforall.spaces.mobilenet_v3 import DEPTHS, EXPANDS, KERNELS, RESOLUTIONS


def proxyless(
    width: float = 1.3,
    resolutions: Sequence[int] = RESOLUTIONS,
    num_classes: int = 1000,
    dropout: float = 0.1,
    *,
    depths: Sequence[int] = DEPTHS,
    kernels: Sequence[int] = KERNELS,
    expands: Sequence[float] = EXPANDS,
) -> InvertedResidualSpace:
    """Five elastic units and a last one of a single elastic block. `width` scales every channel count.

    The authors released width 1.3.
    """

    def channels(base: int) -> int:
        return make_divisible(base * width)

    choices = tuple(kernels), tuple(expands)
    #          depths  channels  stride
    table: list[tuple[Sequence[int], int, int]] = [
        (depths, 24, 2),  # 112 -> 56 px at 224
        (depths, 40, 2),  # 56 -> 28
        (depths, 80, 2),  # 28 -> 14
        (depths, 96, 1),  # 14
        (depths, 192, 2),  # 14 -> 7
        ((1,), 320, 1),  # 7
    ]
    return InvertedResidualSpace(
        resolutions=tuple(resolutions),
        units=tuple(Stage(tuple(d), *choices, channels(c), stride, "relu6", False) for d, c, stride in table),
        name=f"proxyless_w{width}",
        stem_width=channels(32),
        stem_stride=2,  # 224 -> 112
        first=FirstBlock(channels(16), 1, "relu6", shortcut=False),
        final_width=channels(1280),
        mix_width=0,
        activation="relu6",
        num_classes=num_classes,
        dropout=dropout,
        bn_eps=1e-3,
    )
