"""What a search found, as a value and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onceforall.architecture import Architecture
from onceforall.errors import InvalidConfiguration


@dataclass(frozen=True)
class Cost:
    """A predicted cost of the chosen network, with its bound (None: there was none), both in `unit`."""

    name: str
    value: float
    bound: float | None
    unit: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found. `accuracy` (percent) and `costs` are predictions, not measurements.

    `runners_up` are the next best feasible networks, best first; `evaluations` the number of
    different networks whose accuracy was predicted.
    """

    architecture: Architecture
    accuracy: float
    costs: tuple[Cost, ...]
    runners_up: tuple[Architecture, ...]
    evaluations: int
    seconds: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers say that they are predicted."""
        return {
            "architecture": self.architecture.to_json(),
            "predicted_top1": self.accuracy,
            "predicted_costs": [asdict(cost) for cost in self.costs],
            "runners_up": [arch.to_json() for arch in self.runners_up],
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SearchResult:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        try:
            return cls(
                Architecture.from_json(value["architecture"]),
                value["predicted_top1"],
                tuple(Cost(**cost) for cost in value["predicted_costs"]),
                tuple(Architecture.from_json(arch) for arch in value["runners_up"]),
                value["evaluations"],
                value["seconds"],
                value["seed"],
            )
        except (KeyError, TypeError) as error:
            raise InvalidConfiguration(f"not a search result: {error}") from error
