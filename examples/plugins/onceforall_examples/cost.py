"""A cost: energy of one image, from what its operations compute and move.

    ofa search --limit "energy <= 0.05 mJ" --out result.json

Picojoules at 45 nm (Horowitz, "Computing's energy problem", ISSCC 2014, figure 1.1.9): 4.6 for a product
and sum of 32-bit floats, 640 for 32 bits from DRAM. Weights are read from DRAM once an image, feature
maps stay on the chip. It is a model, not a measurement: good for ranking, not for a data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from onceforall.cost.model import AdditiveCost
from onceforall.layers import Layer, operations_of

PICOJOULES_A_MAC = 4.6
PICOJOULES_A_WEIGHT = 640.0
MILLIJOULES = 1e-9  # a picojoule


@dataclass(frozen=True)
class Energy(AdditiveCost):
    """Energy of one image (mJ)."""

    name: str = "energy"
    unit: str = "mJ"

    def layer_cost(self, layer: Layer) -> float:
        return MILLIJOULES * sum(
            PICOJOULES_A_MAC * operation.macs + PICOJOULES_A_WEIGHT * operation.params
            for operation in operations_of([layer])
        )
