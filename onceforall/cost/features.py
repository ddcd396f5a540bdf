"""What a network asks of a device, in numbers that add up over its layers: the input of a learned latency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onceforall.layers import LayerSpec, operations_of, pixels

QUANTITIES = ("calls", "MACs", "elements", "weights")
# The kinds of convolutional networks, to which the first files of learned latencies were fitted, and then all others.
CONVOLUTIONAL = (
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
KINDS = (*CONVOLUTIONAL, "attention", "norm", "other")
NAMES = tuple(f"{kind}: {quantity}" for kind in KINDS for quantity in QUANTITIES)

_KIND_OF = {"dense": "convolution", "grouped": "convolution", "add": "sum"}


def features(layers: Sequence[LayerSpec]) -> NDArray[np.float64]:
    """Calls, MACs, elements moved and weights of each kind of operation, shape [len(NAMES)]."""
    return np.asarray(np.sum([layer_features(layer) for layer in layers], axis=0))


@lru_cache(maxsize=100_000)
def layer_features(layer: LayerSpec) -> NDArray[np.float64]:
    """`features` of one layer, as files have always counted them: a pooling inside a block, and a single convolution's
    sum, are part of that convolution. Raises InvalidConfiguration where nobody registered the layer.
    """
    result = np.zeros((len(KINDS), len(QUANTITIES)))
    operations = list(operations_of([layer]))
    convolutions = sum(operation.weights > 0 for operation in operations)
    pooled = 0
    for operation in operations:
        if operation.kind == "average pool" and convolutions and operation is not operations[-1]:
            pooled = operation.inputs
        elif operation.kind != "add" or convolutions != 1:
            elements = (pooled or operation.inputs) + operation.outputs
            kind = KINDS.index(_kind(operation.kind, operation.kernel))
            result[kind] += (1, operation.macs, elements, operation.weights)
            pooled = 0
    return result.ravel()


def _kind(kind: str, kernel: int | tuple[int, int]) -> str:
    if kind == "depthwise":  # other kernels count as the nearest of these: their MACs say the rest
        return f"depthwise {min((3, 5, 7), key=lambda size: abs(size**2 - pixels(kernel)))}"
    if kind.endswith(" pool"):
        return "pooling"
    kind = _KIND_OF.get(kind, kind)
    return kind if kind in KINDS else "other"
