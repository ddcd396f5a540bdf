"""Costs by name: those that follow from the layers alone, and those that others register."""

from __future__ import annotations

from collections.abc import Callable

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, WeightBytes
from onceforall.cost.model import CostModel
from onceforall.errors import InvalidConfiguration

Factory = Callable[[], CostModel]

_factories: dict[str, Factory] = {
    "macs": MACs,
    "params": Parameters,
    "memory": PeakActivationMemory,
    "weights": WeightBytes,
}


def register(name: str, factory: Factory) -> None:
    """Make a cost known to `by_name` and the command line: a CostModel class, or anything that makes one.

    Raises InvalidConfiguration where the name is taken or cannot be one.
    """
    if not name.replace("-", "_").isidentifier() or name in names():
        raise InvalidConfiguration(
            f"cost {name!r}: expected letters, digits, '_' and '-', and another name than {', '.join(names())}"
        )
    _factories[name] = factory


def names() -> tuple[str, ...]:
    """Every known cost."""
    return tuple(_factories)


def by_name(name: str) -> CostModel:
    """The cost called `name`. Raises InvalidConfiguration."""
    if name not in _factories:
        raise InvalidConfiguration(f"cost {name!r}: choices are {', '.join(names())}")
    return _factories[name]()
