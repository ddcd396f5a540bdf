"""What networks cost: models from layers to a number with a unit.

By name there are those that follow from the layers alone, and those that others add.
"""

from __future__ import annotations

from collections.abc import Callable

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, WeightBytes
from onceforall.cost.model import CostModel
from onceforall.registry import Registry

__all__ = ["by_name", "names", "register"]

Factory = Callable[[], CostModel]

COSTS: Registry[Factory] = Registry(
    "cost",
    "onceforall.costs",
    {"macs": MACs, "params": Parameters, "memory": PeakActivationMemory, "weights": WeightBytes},
)


def register(name: str, factory: Factory) -> None:
    """Make a cost known to `by_name` and the command line: a CostModel class, or anything that makes one.

    Raises InvalidConfiguration where another cost has that name.
    """
    COSTS.register(name, factory)


def names() -> tuple[str, ...]:
    """Every known cost."""
    return COSTS.names()


def by_name(name: str) -> CostModel:
    """The cost called `name`. Raises InvalidConfiguration."""
    return COSTS[name]()
