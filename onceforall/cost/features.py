"""What a network asks of a device, in numbers that add up over its layers: the input of a learned latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onceforall.layers import BottleneckSpec, LayerSpec, LinearSpec, MBConvSpec

KINDS = (
    "convolution",
    "pointwise",
    "depthwise 3",
    "depthwise 5",
    "depthwise 7",
    "squeeze-excite",
    "sum",
    "pooling",
    "linear",
)
NAMES = tuple(f"{kind}: {quantity}" for kind in KINDS for quantity in ("calls", "MACs", "elements", "weights"))


class Work(NamedTuple):
    """One operation: its kind, MACs, elements read and written, weights read."""

    kind: str
    macs: int
    elements: int
    weights: int


def features(layers: Sequence[LayerSpec]) -> NDArray[np.float64]:
    """Calls, MACs, elements moved and weights of each kind of operation, shape [len(NAMES)]."""
    return np.asarray(np.sum([layer_features(layer) for layer in layers], axis=0))


@lru_cache(maxsize=100_000)
def layer_features(layer: LayerSpec) -> NDArray[np.float64]:
    """`features` of one layer."""
    result = np.zeros((len(KINDS), 4))
    for kind, macs, elements, weights in _works(layer):
        result[KINDS.index(kind)] += (1, macs, elements, weights)
    return result.ravel()


def _works(layer: LayerSpec) -> Iterator[Work]:
    source = layer.in_channels * layer.in_size**2
    result = layer.out_channels * layer.out_size**2
    match layer:
        case MBConvSpec():
            mid = layer.mid_channels
            wide, filtered = mid * layer.in_size**2, mid * layer.out_size**2
            if layer.expanded:
                yield Work("pointwise", wide * layer.in_channels, source + wide, mid * layer.in_channels)
            # Other kernels count as the nearest of these: their MACs say the rest.
            kind = f"depthwise {min(max(layer.kernel, 3), 7)}"
            yield Work(kind, layer.kernel**2 * filtered, wide + filtered, layer.kernel**2 * mid)
            if layer.se_channels:
                both = 2 * mid * layer.se_channels
                yield Work("squeeze-excite", both, 2 * filtered, both)
            yield Work("pointwise", filtered * layer.out_channels, filtered + result, mid * layer.out_channels)
            if layer.shortcut:
                yield Work("sum", 0, 2 * result, 0)
        case BottleneckSpec():
            mid = layer.mid_channels
            reduced, filtered = mid * layer.in_size**2, mid * layer.out_size**2
            yield Work("pointwise", reduced * layer.in_channels, source + reduced, mid * layer.in_channels)
            weights = layer.kernel**2 * mid**2
            yield Work("convolution", weights * layer.out_size**2, reduced + filtered, weights)
            yield Work("pointwise", filtered * layer.out_channels, filtered + result, mid * layer.out_channels)
            if layer.downsample:
                weights = layer.in_channels * layer.out_channels
                yield Work("pointwise", weights * layer.out_size**2, source + result, weights)
            yield Work("sum", 0, 2 * result, 0)
        case LinearSpec():
            yield Work("linear", layer.macs, source + result, layer.macs)
        case _:
            (operation,) = layer.operations
            kind = "pooling" if not layer.macs else "pointwise" if getattr(layer, "kernel", 0) == 1 else "convolution"
            yield Work(kind, layer.macs, operation.inputs + operation.outputs, operation.weights)
