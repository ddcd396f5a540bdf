"""How well predicted latencies agree with measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from onceforall import serial
from onceforall.errors import InvalidConfiguration


@dataclass(frozen=True)
class Errors:
    """Predictions against measurements of `networks` networks, errors in percent of what was measured.

    mape: mean absolute error; bias: mean signed error; worst: largest absolute error; within_5,
    within_10: share of networks within so many percent, in percent; spearman: rank correlation, 0 where nothing varies.
    """

    networks: int
    mape: float
    bias: float
    worst: float
    within_5: float
    within_10: float
    spearman: float

    @classmethod
    def of(cls, predicted: Sequence[float] | NDArray[Any], measured: Sequence[float] | NDArray[Any]) -> Errors:
        """Compare predictions with measurements (ms), at least two."""
        p, m = np.asarray(predicted, float), np.asarray(measured, float)
        if len(p) != len(m) or len(m) < 2:
            raise InvalidConfiguration(f"{len(p)} predictions and {len(m)} measurements: expected two or more of each")
        errors = 100 * (p - m) / m
        return cls(
            len(m),
            float(np.abs(errors).mean()),
            float(errors.mean()),
            float(np.abs(errors).max()),
            float(100 * (np.abs(errors) <= 5).mean()),
            float(100 * (np.abs(errors) <= 10).mean()),
            float(spearmanr(p, m).statistic) if np.ptp(p) and np.ptp(m) else 0.0,
        )

    def __str__(self) -> str:
        return (
            f"mean error {self.mape:.1f} %, {self.within_5:.0f} % within 5 %, worst {self.worst:.1f} %, "
            f"Spearman {self.spearman:.3f}"
        )


@dataclass(frozen=True)
class Validation:
    """What a latency model got wrong on networks that took no part in making it.

    kinds: errors of each kind of network (random, uniform, given) and of `all`. noise: how far the
    measured medians themselves are from the truth, estimated as half of the mean difference between
    the medians of odd and of even turns; drift: how much the whole machine became slower and faster
    from turn to turn, half the range (medians have it taken out). Both in percent.
    """

    kinds: Mapping[str, Errors] = field(default_factory=dict)
    noise: float = 0.0
    drift: float = 0.0

    @property
    def all(self) -> Errors:
        """Errors of all networks together."""
        return self.kinds["all"]

    @classmethod
    def of(
        cls,
        kinds: Sequence[str],
        predicted: Sequence[float] | NDArray[Any],
        measured: Sequence[float] | NDArray[Any],
        noise: float = 0.0,
        drift: float = 0.0,
    ) -> Validation:
        """Compare predictions with measurements (ms) of networks of these kinds."""
        p, m = np.asarray(predicted, float), np.asarray(measured, float)
        found = {"all": Errors.of(p, m)}
        for kind in dict.fromkeys(kinds):
            chosen = np.array([other == kind for other in kinds])
            if 2 <= chosen.sum() < len(m):
                found[kind] = Errors.of(p[chosen], m[chosen])
        return cls(found, noise, drift)

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal validation."""
        value: dict[str, Any] = serial.to_json(self)
        return value

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        return serial.from_json(cls, value, "a validation")
