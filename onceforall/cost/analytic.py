"""Costs that follow from the layers alone: MACs, parameters, memory. No device, no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from onceforall.cost.model import AdditiveCost, PeakCost
from onceforall.layers import LayerSpec, operations_of


@dataclass(frozen=True)
class MACs(AdditiveCost):
    """Multiply-accumulates of one image."""

    name: str = "MACs"
    unit: str = "MACs"

    def layer_cost(self, layer: LayerSpec) -> float:
        return layer.macs


@dataclass(frozen=True)
class Parameters(AdditiveCost):
    """Weights, biases, batch-norm scale and shift of the extracted network."""

    name: str = "parameters"
    unit: str = "parameters"

    def layer_cost(self, layer: LayerSpec) -> float:
        return layer.params


@dataclass(frozen=True)
class WeightBytes(AdditiveCost):
    """What the parameters of the extracted network take, in bytes: `bytes_per_element` each (4: fp32, 1: int8)."""

    bytes_per_element: int = 4
    name: str = "weights"
    unit: str = "bytes"

    def layer_cost(self, layer: LayerSpec) -> float:
        return self.bytes_per_element * layer.params


@dataclass(frozen=True)
class PeakActivationMemory(PeakCost):
    """Largest sum of feature maps alive at once: an operation's input and output, and a held shortcut.

    The input image counts, as the first convolution's input. Weights, and squeeze-excite's vectors,
    do not. In bytes, `bytes_per_element` each (4: fp32, 1: int8).
    """

    bytes_per_element: int = 4
    name: str = "peak activation memory"
    unit: str = "bytes"

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        return self.bytes_per_element * max(operation.live for operation in operations_of(layers))


@dataclass(frozen=True)
class PeakConvolutionMemory(PeakCost):
    """Largest sum, over the convolutions before the global pooling, of feature maps alive and the weights.

    The definition of memory-optimised Once-for-All (MOOFA): as PeakActivationMemory, plus the
    weights of that one convolution. The input image counts; pooling, squeeze-excite, batch norm, and
    all that follows the global pooling, do not. It is published in elements (`bytes_per_element=1`).
    """

    bytes_per_element: int = 4
    name: str = "peak convolution memory"
    unit: str = "bytes"

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        before = itertools.takewhile(lambda operation: operation.kind != "global pool", operations_of(layers))
        weighted = (operation for operation in before if operation.weights and operation.kind != "squeeze-excite")
        # What has no convolution before the pooling, as a classifier on its own, needs nothing.
        return self.bytes_per_element * max((operation.live + operation.weights for operation in weighted), default=0)


def macs(layers: Sequence[LayerSpec]) -> int:
    """Multiply-accumulates of one image."""
    return sum(layer.macs for layer in layers)


def params(layers: Sequence[LayerSpec]) -> int:
    """Weights, biases, batch-norm scale and shift."""
    return sum(layer.params for layer in layers)
