"""What a cost model is, and the constraint that it makes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.layers import LayerSpec, LinearSpec
from onceforall.rows import Rows
from onceforall.sizes import Size, side
from onceforall.space import SearchSpace


class CostModel(ABC):
    """From the layers of a network to a number in `unit`.

    kind says what the number is: computed (it follows from the layers), predicted (learnt from measurements),
    modelled (of hardware that is described), or estimated (by its vendor's tool).
    """

    name: str
    unit: str
    kind = "computed"

    @abstractmethod
    def cost(self, layers: Sequence[LayerSpec]) -> float:
        """Cost of a network, in `unit`."""

    def at(self, resolution: Size) -> AdditiveCost | None:
        """The additive cost that this model is for networks of one input resolution (px); None where it is not."""
        return None

    def cost_rows(self, space: SearchSpace, rows: Rows) -> NDArray[np.float64]:
        """Cost of each row of a space, in `unit`, shape [n].

        One by one here. A cost that is neither additive, nor a peak, nor a function of sums but can be had
        for many networks at once overrides it, and searches become as fast.
        """
        return np.array([self.cost(space.lower(arch)) for arch in space.from_rows(rows)], float)

    def at_most(self, bound: float, unit: str | None = None) -> Constraint:
        """The constraint that the cost is at most `bound`; `unit`, where given, must be that of the model."""
        return Constraint(self, bound, unit)


class AdditiveCost(CostModel):
    """A cost that is a constant plus a sum over layers: a search can gather it from a table."""

    constant: float = 0.0

    def at(self, resolution: Size) -> AdditiveCost:
        return self

    @abstractmethod
    def layer_cost(self, layer: LayerSpec) -> float:
        """Contribution of one layer, in `unit`."""

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        return self.constant + sum(self.layer_cost(layer) for layer in layers)


class SummedCost(CostModel):
    """A function of several sums over layers: a search can gather those from a table."""

    @abstractmethod
    def parts_at(self, resolution: Size) -> tuple[Callable[[LayerSpec], NDArray[np.float64]], NDArray[np.float64]]:
        """At an input resolution (px): what a layer adds to the sums, and where they begin, [sums] each."""

    @abstractmethod
    def of_sums(self, sums: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
        """Costs [n] of networks, in `unit`, from their sums [n, sums] and the sides (px) of their images [n]."""

    def costs(self, networks: Sequence[Sequence[LayerSpec]]) -> NDArray[np.float64]:
        """Costs of networks, in `unit`, shape [n]."""
        if not networks:
            return np.empty(0)
        sizes = [input_size(layers) for layers in networks]
        sums = []
        for layers, size in zip(networks, sizes, strict=True):
            part, begin = self.parts_at(size)
            sums.append(begin + np.sum([part(layer) for layer in layers], axis=0))
        return self.of_sums(np.stack(sums), np.array(list(map(side, sizes)), float))

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        return float(self.costs([layers])[0])


def input_size(layers: Sequence[LayerSpec]) -> Size:
    """The input resolution (px) of a network, which its first layer reads. Raises OutOfDomain where that is none."""
    first = layers[0]
    if isinstance(first, LinearSpec):
        raise OutOfDomain(f"layer {first.key} reads no image: give the layers of a whole network")
    return first.in_size


class PeakCost(CostModel):
    """A cost that is the largest of its parts: of what comes before the blocks, each block, what comes after them.

    A search can gather it from a table as well, and take the maximum.
    """


@dataclass(frozen=True)
class Constraint:
    """A cost model and its upper bound (inclusive).

    `unit` says what the bound is in. It is that of the model where it is left out; any other raises
    InvalidConfiguration, as would a latency in seconds.
    """

    model: CostModel
    bound: float
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.unit is None:
            object.__setattr__(self, "unit", self.model.unit)
        if self.unit != self.model.unit:
            raise InvalidConfiguration(
                f"{self.model.name} <= {self.bound} {self.unit}: this cost is in {self.model.unit}; convert the bound"
            )
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise InvalidConfiguration(f"{self.model.name} <= {self.bound}: expected a positive, finite bound")

    def __str__(self) -> str:
        return f"{self.model.name} <= {self.bound:g} {self.model.unit}"
