"""What a search found, as a value and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from onceforall import serial
from onceforall.architecture import Architecture
from onceforall.cost.model import CostModel

# In files the numbers say that they are predicted.
PREDICTED = {"accuracy": "predicted_top1", "costs": "predicted_costs"}


@dataclass(frozen=True)
class Cost:
    """A predicted cost of the chosen network, with its bound (None: there was none), both in `unit`."""

    name: str
    value: float
    bound: float | None
    unit: str

    @classmethod
    def of(cls, model: CostModel, value: float, bound: float | None = None) -> Self:
        """What a model says."""
        return cls(model.name, float(value), bound, model.unit)


@dataclass(frozen=True)
class Found:
    """What a search may find. A subclass is a dataclass, and says what it is in messages."""

    what: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers say that they are predicted."""
        value: dict[str, Any] = renamed(serial.to_json(self), PREDICTED)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`, whatever else the object holds. Raises InvalidConfiguration."""
        own = renamed(value, {theirs: ours for ours, theirs in PREDICTED.items()})
        known = {field.name: own[field.name] for field in fields(cls) if field.name in own}
        return serial.from_json(cls, known, cls.what)


@dataclass(frozen=True)
class SearchResult(Found):
    """What a search found. `accuracy` (percent) and `costs` are predictions, not measurements.

    `runners_up` are the next best feasible networks, best first; `evaluations` the number of
    different networks whose accuracy was predicted. For another task than classification `accuracy`
    is what its predictor learnt: the score, or its negative where lower is better.
    """

    what = "a search result"

    architecture: Architecture
    accuracy: float
    costs: tuple[Cost, ...]
    runners_up: tuple[Architecture, ...]
    evaluations: int
    seconds: float
    seed: int


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A JSON value whose objects have other names for some of their fields."""
    if isinstance(value, dict):
        return {names.get(name, name): renamed(item, names) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [renamed(item, names) for item in value]
    return value
