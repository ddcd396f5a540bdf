"""How good an accuracy predictor is on architectures that it did not learn from, next to MACs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from onceforall.architecture import Architecture
from onceforall.cost.analytic import MACs
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.predict.predictor import AccuracyPredictor
from onceforall.rows import Rows
from onceforall.search.pricing import PriceTable
from onceforall.space import SearchSpace


class MACsPredictor:
    """MACs alone, what every other predictor has to beat: a straight line in log(MACs)."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._macs = PriceTable(space, MACs())
        self._line: NDArray[np.float64] | None = None

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self:
        """Learn from at least two labelled architectures; accuracies in percent."""
        self._line = np.polyfit(np.log(self._macs(self.space.to_rows(architectures))), accuracies, 1)
        return self

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predicted top-1 (percent), shape [n]. Raises OutOfDomain before `fit`."""
        return self.predict_rows(self.space.to_rows(architectures))

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        """Predicted top-1 (percent) of rows of the space, shape [n]. Raises OutOfDomain before `fit`."""
        if self._line is None:
            raise OutOfDomain("this predictor has learnt nothing yet: call fit with labelled architectures")
        return np.asarray(np.polyval(self._line, np.log(self._macs(rows))), np.float64)


def errors(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float]:
    """RMSE (points) and Kendall's tau, which is 0 where nothing varies."""
    tau = float(kendalltau(predicted, measured).statistic)
    return float(np.sqrt(np.mean((predicted - measured) ** 2))), 0.0 if np.isnan(tau) else tau


@dataclass(frozen=True)
class PredictorQuality:
    """Errors on held-out architectures: RMSE in points of top-1, Kendall's tau; the same of MACs alone.

    MACs predict through a straight line in log(MACs), fitted on the same training rows.
    """

    train: int
    held_out: int
    rmse: float
    kendall_tau: float
    macs_rmse: float
    macs_kendall_tau: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def assess(
    predictor: AccuracyPredictor,
    space: SearchSpace,
    architectures: Sequence[Architecture],
    accuracies: Sequence[float],
    *,
    held_out: float = 0.1,
    seed: int = 0,
) -> PredictorQuality:
    """Fit on part of the labels and measure on the rest (a random share `held_out`).

    An architecture that was measured several times is held out, or learnt from, as a whole. What alone
    shows some choice is learnt from: without it, a predictor would rightly refuse to answer.
    Raises InvalidConfiguration where there are too few labels.
    """
    distinct = list(dict.fromkeys(architectures))
    count = round(held_out * len(distinct))
    if count < 2:
        raise InvalidConfiguration(f"{len(distinct)} labelled architectures: too few to hold {held_out:.0%} out")
    of_test = {distinct[i] for i in _removable(space.to_rows(distinct), np.random.default_rng(seed))[:count]}
    if len(of_test) < 2:
        raise InvalidConfiguration(
            f"{len(distinct)} labelled architectures: too few to hold {held_out:.0%} out without losing a choice that "
            "the others do not show; measure more with `ofa label`"
        )
    pairs = list(zip(architectures, map(float, accuracies), strict=True))
    train = [pair for pair in pairs if pair[0] not in of_test]
    test, measured = zip(*(pair for pair in pairs if pair[0] in of_test), strict=True)
    known, labels = zip(*train, strict=True)
    found = [
        errors(model.fit(known, labels).predict(test), np.array(measured))
        for model in (predictor, MACsPredictor(space))
    ]
    return PredictorQuality(len(train), len(test), *found[0], *found[1])


def _removable(rows: Rows, rng: np.random.Generator) -> list[int]:
    """In random order, rows that can be taken away one after the other while the rest shows all their choices."""
    columns = np.arange(rows.shape[1])
    shown = np.zeros((rows.shape[1], 2 + int(rows.max())), np.int64)
    for row in rows:
        shown[columns, 1 + row] += 1
    removable = []
    for index in rng.permutation(len(rows)).tolist():
        places = 1 + rows[index]
        if ((shown[columns, places] > 1) | (places == 0)).all():
            shown[columns, places] -= 1
            removable.append(index)
    return removable
