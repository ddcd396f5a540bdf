"""An accuracy predictor corrected for a precision: what quantising costs, learnt from few sub-networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from onceforall import serial
from onceforall.architecture import Architecture
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.files import read_json_object, write_json
from onceforall.predict.predictor import FittedPredictor
from onceforall.predict.ridge import ridge
from onceforall.rows import Rows
from onceforall.space import SearchSpace

FEWEST = 5
FORMAT = "onceforall.correction/1"


@dataclass(frozen=True)
class _Learnt:
    """What a correction learnt from, as its file has it: of each sub-network how much better it scores (points)."""

    format: str
    architectures: tuple[Architecture, ...]
    changes: tuple[float, ...]


class CorrectedPredictor:
    """A fitted predictor plus a ridge regression on how far the other precision is from its labels.

    Few labels tell little of each choice: the penalty of least leave-one-out error then leaves a mean.
    """

    def __init__(self, base: FittedPredictor) -> None:
        self.base = base

    @property
    def space(self) -> SearchSpace:
        """The space of its rows."""
        return self.base.space

    def fit(self, architectures: Sequence[Architecture], changes: Sequence[float]) -> Self:
        """Learn from top-1 in the other precision minus that in the base's (points). Raises InvalidConfiguration."""
        if len(architectures) != len(changes) or len(changes) < FEWEST or not np.isfinite(changes).all():
            raise InvalidConfiguration(
                f"{len(architectures)} architectures, {len(changes)} changes: expected {FEWEST} of each or more, finite"
            )
        self.architectures, self.changes = tuple(architectures), np.asarray(changes, float)
        self._solution = ridge(self.space.encode(architectures).astype(float), self.changes)
        return self

    def save(self, path: Path) -> None:
        """What it learnt from, as JSON. Raises UnwritableOutput."""
        write_json(path, serial.to_json(_Learnt(FORMAT, self.architectures, tuple(self.changes.tolist()))))

    def load(self, path: Path) -> Self:
        """Learn what `save` wrote. Raises InvalidConfiguration, InvalidArchitecture."""
        learnt = serial.from_json(_Learnt, read_json_object(path), f"a correction ({path})")
        if learnt.format != FORMAT:
            raise InvalidConfiguration(f"{path}: format {learnt.format!r:.60}, expected {FORMAT!r}")
        return self.fit(learnt.architectures, learnt.changes)

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predicted top-1 (percent) in the other precision, shape [n]. Raises OutOfDomain."""
        return self.predict_rows(self.base.to_rows(architectures))

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        """Predicted top-1 (percent) of rows of the space, shape [n]. Raises OutOfDomain."""
        if not hasattr(self, "_solution"):
            raise OutOfDomain("this correction has learnt nothing yet: call fit with measured changes")
        encoded = self.space.encode_rows(rows)
        change = encoded @ self._solution.weights + self._solution.intercept
        return self.base.bounded(np.asarray(self.base.raw_rows(rows) + change))
