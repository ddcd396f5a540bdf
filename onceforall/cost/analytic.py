"""Costs that follow from the layers alone: MACs, parameters, memory. No device, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onceforall.cost.model import AdditiveCost, CostModel
from onceforall.layers import LayerSpec


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
class PeakActivationMemory(CostModel):
    """Largest sum of tensors alive at once: an operation's input and output, and a held shortcut.

    The input image counts. Weights, and squeeze-excite's vectors, do not. In bytes.
    """

    bytes_per_element: int = 4
    name: str = "peak activation memory"
    unit: str = "bytes"

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        return self.bytes_per_element * max(max(layer.live_elements) for layer in layers)


def macs(layers: Sequence[LayerSpec]) -> int:
    """Multiply-accumulates of one image."""
    return sum(layer.macs for layer in layers)


def params(layers: Sequence[LayerSpec]) -> int:
    """Weights, biases, batch-norm scale and shift."""
    return sum(layer.params for layer in layers)
