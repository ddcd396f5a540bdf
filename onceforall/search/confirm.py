"""Predictions confirmed by measurements: of the winner of a search, and of a whole front.

An optimiser exploits the errors of what it maximises, so what it chose is measured before it is
believed. How to measure is given as functions of architectures; nothing here knows a device or an image.

An accuracy is what the predictor learnt: top-1 (percent) of classifiers; for another task its score in
the score's unit, or the negative of that where lower is better. What is measured is given likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from onceforall import serial
from onceforall.architecture import Architecture
from onceforall.cost.model import Constraint, CostModel
from onceforall.errors import InvalidConfiguration
from onceforall.rows import Rows
from onceforall.search.limits import Limits
from onceforall.search.pareto import front, ranks
from onceforall.search.result import Cost, SearchResult, renamed
from onceforall.search.scoring import RowPredictor, rows_of
from onceforall.space import SearchSpace

UNFAMILIAR = -1e30  # worse than any score, and still a number to reckon with

Measure = Callable[[Sequence[Architecture]], Sequence[float]]


@dataclass(frozen=True)
class Trial:
    """One candidate on the device and on images: what was predicted, and what was measured.

    Costs are in the unit of the constraint. `measured_top1`, an accuracy, is None where the candidate
    broke its budget: nothing depends on it then.
    """

    architecture: Architecture
    predicted_cost: float
    measured_cost: float
    predicted_top1: float
    measured_top1: float | None
    met: bool

    @property
    def cost_gap(self) -> float:
        """Measured minus predicted cost, in percent of the predicted."""
        return 100 * (self.measured_cost / self.predicted_cost - 1)

    @property
    def top1_gap(self) -> float | None:
        """Measured minus predicted accuracy, in points or in the unit of its score."""
        return None if self.measured_top1 is None else self.measured_top1 - self.predicted_top1

    def to_json(self) -> dict[str, Any]:
        """A JSON object, the gaps included."""
        return {**serial.to_json(self), "cost_gap_percent": self.cost_gap, "top1_gap": self.top1_gap}


@dataclass(frozen=True)
class Confirmation:
    """The candidates of a search that were measured, in order, until one kept its budget.

    `result` is that of the search, with the chosen network in front. `bound`: what the measured cost
    may be, in `unit`.
    """

    result: SearchResult
    trials: tuple[Trial, ...]
    bound: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether a candidate was found that keeps the budget on the device."""
        return self.trials[-1].met

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the search result, and under "confirmation" what was measured."""
        trials = [trial.to_json() for trial in self.trials]
        measured = {"met": self.met, "bound": self.bound, "unit": self.unit, "trials": trials}
        return {**self.result.to_json(), "confirmation": measured}


def confirm(
    space: SearchSpace,
    accuracy: RowPredictor,
    result: SearchResult,
    constraints: Sequence[Constraint],
    measure_cost: Measure,
    measure_accuracy: Measure,
    *,
    top: int = 5,
) -> Confirmation:
    """Measure the winner of a search; where it breaks its budget, try the next best, `top` candidates at most.

    constraints: those of the search, of which the first is measured; measure_cost: in its unit;
    measure_accuracy: asked only about what met the budget. The first candidate that meets
    it is chosen, or, where none does, the one that was measured cheapest.
    """
    if top < 1 or not constraints:
        raise InvalidConfiguration(
            f"top {top}, {len(constraints)} constraints: expected at least one candidate, and a constraint to measure"
        )
    bound, model = constraints[0].bound, constraints[0].model
    trials: list[Trial] = []
    candidates = [result.architecture, *result.runners_up][:top]
    predicted = rows_of(space, accuracy)(space.to_rows(candidates)).tolist()
    for architecture, top1 in zip(candidates, predicted, strict=True):
        (cost,) = measure_cost([architecture])
        met = bool(cost <= bound)
        measured = float(measure_accuracy([architecture])[0]) if met else None
        trials.append(Trial(architecture, model.cost(space.lower(architecture)), float(cost), top1, measured, met))
        if met:
            break
    chosen = trials[-1] if trials[-1].met else min(trials, key=lambda trial: trial.measured_cost)
    layers = space.lower(chosen.architecture)
    others = [other for other in (result.architecture, *result.runners_up) if other != chosen.architecture]
    first = replace(
        result,
        architecture=chosen.architecture,
        accuracy=chosen.predicted_top1,
        costs=tuple(Cost.of(c.model, c.model.cost(layers), c.bound) for c in constraints),
        runners_up=tuple(others),
    )
    return Confirmation(first, tuple(trials), bound, model.unit)


class Learner(RowPredictor, Protocol):
    """A predictor that learns accuracies from measured architectures."""

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self: ...


@dataclass(frozen=True)
class MeasuredPoint:
    """A measured network: accuracy as measured, cost as measured or, where nothing measured it, predicted.

    `predicted_top1` is what the predictor of its round expected; None for the first sample.
    """

    architecture: Architecture
    top1: float
    cost: float
    predicted_top1: float | None


@dataclass(frozen=True)
class MeasuredFront:
    """All measured networks in the order of their measurement, and which of them are the front, cheapest first.

    errors: for each round of the search, the mean absolute error of its predicted accuracies.
    """

    measured: tuple[MeasuredPoint, ...]
    errors: tuple[float, ...]

    @property
    def points(self) -> tuple[MeasuredPoint, ...]:
        """The measured networks of which none is both less accurate and dearer than another."""
        objectives = np.array([[-point.top1, point.cost] for point in self.measured])
        best = [point for point, rank in zip(self.measured, ranks(objectives), strict=True) if rank == 0]
        return tuple(sorted(best, key=lambda point: point.cost))

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is measured and what is predicted is in the names."""
        said = {"top1": "measured_top1"}
        points, measured = (renamed(serial.to_json(group), said) for group in (self.points, self.measured))
        return {"front": points, "measured": measured, "round_errors": list(self.errors)}


class _Familiar:
    """A predictor that answers `UNFAMILIAR` where a choice was in no architecture that it learnt from.

    A search asks about networks that it will not take, and a predictor refuses what it cannot know.
    """

    def __init__(self, space: SearchSpace, predictor: RowPredictor, learnt: Sequence[Architecture]) -> None:
        self.space, self._predict = space, rows_of(space, predictor)
        self._known = [np.unique(column) for column in space.to_rows(learnt).T]

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        known = np.all([np.isin(column, seen) for column, seen in zip(rows.T, self._known, strict=True)], axis=0)
        found = np.full(len(rows), UNFAMILIAR)
        if known.any():
            found[known] = self._predict(rows[known])
        return found


def measured_front(
    space: SearchSpace,
    predictor: Learner,
    cost: CostModel,
    measure_accuracy: Measure,
    *,
    constraints: Sequence[Constraint] = (),
    measure_cost: Measure | None = None,
    measurements: int = 250,
    rounds: int = 5,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> MeasuredFront:
    """A front whose points are all measured: measure, fit, search, measure what was found, and again.

    Half of the measurements are random networks, with the smallest and the largest among them, brought
    within the constraints; the other half goes in equal parts to `rounds` fronts, each found with a
    predictor fitted to all that was measured before. Measured accuracies alone decide the result.
    `report` receives (done, total). Raises InfeasibleConstraint, and InvalidConfiguration below 20 measurements.
    """
    if not 1 <= rounds <= measurements // 4 or measurements < 20:
        raise InvalidConfiguration(
            f"{measurements} measurements in {rounds} rounds: expected at least 20, and 4 for each round"
        )
    rng = np.random.default_rng(seed)
    known: dict[Architecture, MeasuredPoint] = {}

    def measure(architectures: Sequence[Architecture], expected: Sequence[float | None]) -> None:
        accuracies = measure_accuracy(architectures)
        costs = measure_cost(architectures) if measure_cost else [cost.cost(space.lower(a)) for a in architectures]
        for architecture, top1, price, guess in zip(architectures, accuracies, costs, expected, strict=True):
            known[architecture] = MeasuredPoint(architecture, float(top1), float(price), guess)
        report(len(known), measurements)

    limits = Limits(space, constraints)
    rows = space.to_rows([space.smallest(), space.largest()])
    rows = np.concatenate([rows, space.sample_rows(measurements, rng)])
    # Resolutions in turn: a predictor can say nothing of one that no network had.
    turns = np.resize(rng.permutation(limits.resolutions), len(rows))
    drawn = ~np.isin(rows[:, 0], limits.resolutions)
    drawn[2:] = True
    rows[drawn, 0] = turns[drawn]
    first = list(dict.fromkeys(space.from_rows(limits.repair(rows, rng))))[: measurements - measurements // 2]
    measure(first, [None] * len(first))
    errors = []
    for number in range(rounds):
        left = (measurements - len(known)) // (rounds - number)
        predictor.fit(list(known), [point.top1 for point in known.values()])
        familiar = _Familiar(space, predictor, list(known))
        # Twice as many points as are wanted: some of them are known already.
        found = front(space, familiar, [cost], constraints, points=2 * left, seed=seed + number, rounds=1)
        new = [point for point in found.points if point.architecture not in known and point.accuracy > UNFAMILIAR]
        picked = [new[i] for i in np.unique(np.linspace(0, len(new) - 1, min(left, len(new))).round().astype(int))]
        if not picked:
            continue
        guesses = [point.accuracy for point in picked]
        measure([point.architecture for point in picked], guesses)
        errors.append(float(np.mean([abs(known[p.architecture].top1 - p.accuracy) for p in picked])))
    return MeasuredFront(tuple(known.values()), tuple(errors))
