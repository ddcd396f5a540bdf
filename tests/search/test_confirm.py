from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.cost.analytic import MACs, Parameters
from onceforall.cost.latency import LatencyTable
from onceforall.errors import InvalidConfiguration
from onceforall.search.confirm import confirm, measured_front
from onceforall.search.evolution import search
from onceforall.search.result import SearchResult
from onceforall.space import SearchSpace

Make = Callable[..., Any]


@pytest.fixture
def found(tiny_space: SearchSpace, linear: Make) -> tuple[Any, list[Any], SearchResult]:
    table = LatencyTable.synthetic(tiny_space)
    limits = [table.at_most(0.6 * table.cost(tiny_space.lower(tiny_space.largest()))), Parameters().at_most(1e6)]
    accuracy = linear(tiny_space)
    return accuracy, limits, search(tiny_space, accuracy, limits, generations=2)


@pytest.mark.parametrize("broken", [0, 2])
def test_the_first_candidate_that_keeps_its_budget_is_taken(broken: int, tiny_space: SearchSpace, found: Any) -> None:
    accuracy, limits, result = found
    ranked = [result.architecture, *result.runners_up]
    asked: list[Architecture] = []

    def latency(archs: Sequence[Architecture]) -> list[float]:
        return [limits[0].bound * (1.1 if ranked.index(arch) < broken else 0.9) for arch in archs]

    def top1(archs: Sequence[Architecture]) -> list[float]:
        asked.extend(archs)
        return [60.0] * len(archs)

    confirmed = confirm(tiny_space, accuracy, result, limits, latency, top1)
    assert confirmed.met
    assert [trial.architecture for trial in confirmed.trials] == ranked[: broken + 1]
    assert asked == [ranked[broken]]  # images are spent on what meets its budget only
    chosen = confirmed.trials[-1]
    assert chosen.top1_gap == pytest.approx(60 - accuracy.predict_rows(tiny_space.to_rows([ranked[broken]]))[0])
    assert chosen.cost_gap == pytest.approx(100 * (0.9 * limits[0].bound / chosen.predicted_cost - 1))
    # The result is that of the chosen network, and says what the others are.
    assert confirmed.result.architecture == ranked[broken]
    assert [confirmed.result.architecture, *confirmed.result.runners_up] == sorted(
        ranked, key=lambda arch: arch != ranked[broken]
    )
    layers = tiny_space.lower(ranked[broken])
    assert [cost.value for cost in confirmed.result.costs] == [limit.model.cost(layers) for limit in limits]
    value = json.loads(json.dumps(confirmed.to_json()))
    assert SearchResult.from_json(value) == confirmed.result
    assert [trial["met"] for trial in value["confirmation"]["trials"]] == [False] * broken + [True]


def test_where_no_candidate_keeps_the_budget_the_cheapest_is_named(tiny_space: SearchSpace, found: Any) -> None:
    accuracy, limits, result = found
    ranked = [result.architecture, *result.runners_up]

    def latency(archs: Sequence[Architecture]) -> list[float]:
        return [limits[0].bound * (1.5 - 0.1 * ranked.index(arch)) for arch in archs]

    def never(archs: Sequence[Architecture]) -> list[float]:
        raise AssertionError("no image is needed")

    confirmed = confirm(tiny_space, accuracy, result, limits, latency, never, top=3)
    assert not confirmed.met
    assert len(confirmed.trials) == 3
    assert confirmed.result.architecture == ranked[2]
    assert confirmed.trials[0].top1_gap is None
    dearer = confirm(
        tiny_space, accuracy, result, limits, lambda a: [4 * limits[0].bound - x for x in latency(a)], never
    )
    assert dearer.result.architecture == ranked[0]
    with pytest.raises(InvalidConfiguration, match="top 0"):
        confirm(tiny_space, accuracy, result, limits, latency, never, top=0)


class Fitted:
    """Learns a straight line of what it is given; counts how often."""

    def __init__(self, space: SearchSpace) -> None:
        self.space, self.seen = space, list[int]()
        self.weights = np.zeros(space.encode([space.largest()]).shape[1])

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Fitted:
        self.seen.append(len(architectures))
        x = self.space.encode(architectures).astype(float)
        self.mean = float(np.mean(accuracies))
        ridge = x.T @ x + np.eye(x.shape[1])
        self.weights = np.linalg.solve(ridge, x.T @ (np.asarray(accuracies) - self.mean))
        return self

    def predict_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.mean + self.space.encode_rows(rows) @ self.weights, np.float64)


def test_a_measured_front_measures_fits_and_searches_in_turn(tiny_space: SearchSpace, curved: Make) -> None:
    truth, learner = curved(tiny_space), Fitted(tiny_space)
    done: list[tuple[int, int]] = []
    measured: list[Architecture] = []

    def top1(archs: Sequence[Architecture]) -> list[float]:
        measured.extend(archs)
        return [float(value) for value in truth.predict_rows(tiny_space.to_rows(archs))]

    limit = Parameters().at_most(Parameters().cost(tiny_space.lower(tiny_space.largest())) - 1)
    settings: dict[str, Any] = {"constraints": [limit], "measurements": 40, "rounds": 2, "seed": 1}
    found = measured_front(
        tiny_space, learner, MACs(), top1, **settings, report=lambda *progress: done.append(progress)
    )
    assert len(measured) == len(set(measured)) == len(found.measured) == done[-1][0] <= 40
    assert learner.seen[0] == 20
    assert len(learner.seen) == len(found.errors) == 2
    assert learner.seen[1] > 20
    for point in found.measured:
        layers = tiny_space.lower(point.architecture)
        assert point.top1 == pytest.approx(truth.predict_rows(tiny_space.to_rows([point.architecture]))[0])
        assert point.cost == MACs().cost(layers)
        assert limit.model.cost(layers) <= limit.bound
    for point in found.points:
        assert not any(o.top1 > point.top1 and o.cost <= point.cost for o in found.measured)
    costs = [point.cost for point in found.points]
    assert costs == sorted(costs)
    assert {point.predicted_top1 is None for point in found.measured[:20]} == {True}
    value = json.loads(json.dumps(found.to_json()))
    assert len(value["front"]) == len(found.points)


def test_predictors_know_every_resolution_that_is_searched(curved: Make) -> None:
    """More resolutions than the first measurements: those without one are left out."""

    class Strict(Fitted):
        def predict_rows(self, rows: np.ndarray) -> np.ndarray:
            assert set(rows[:, 0].tolist()) <= self.known
            return super().predict_rows(rows)

        def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Strict:
            self.known = {self.space.resolutions.index(arch.resolution) for arch in architectures}
            super().fit(architectures, accuracies)
            return self

    space = spaces.mobilenet_v3()
    truth = curved(space)
    found = measured_front(
        space, Strict(space), MACs(), lambda archs: truth.predict_rows(space.to_rows(archs)).tolist(),
        measurements=30, rounds=1,
    )  # fmt: skip
    assert len({point.architecture.resolution for point in found.measured[:15]}) >= 13


def test_measured_costs_decide_where_they_are_given(tiny_space: SearchSpace, linear: Make) -> None:
    truth = linear(tiny_space)
    found = measured_front(
        tiny_space,
        Fitted(tiny_space),
        MACs(),
        lambda archs: truth.predict_rows(tiny_space.to_rows(archs)).tolist(),
        measure_cost=lambda archs: [float(arch.resolution) for arch in archs],
        measurements=20,
        rounds=1,
    )
    assert {point.cost for point in found.measured} == {16.0, 20.0}
    assert len(found.points) <= 2
    with pytest.raises(InvalidConfiguration, match="10 measurements in 5 rounds"):
        measured_front(tiny_space, Fitted(tiny_space), MACs(), lambda archs: [0.0] * len(archs), measurements=10)


@pytest.mark.parametrize("shift", [0.0, -1000.0], ids=["percent", "errors, as negatives"])
def test_a_score_of_any_range_is_searched(shift: float, tiny_space: SearchSpace, linear: Make) -> None:
    truth = linear(tiny_space)
    found = measured_front(
        tiny_space,
        Fitted(tiny_space),
        MACs(),
        lambda archs: (truth.predict_rows(tiny_space.to_rows(archs)) + shift).tolist(),
        measurements=24,
        rounds=2,
        seed=2,
    )
    assert len(found.errors) == 2
    assert sum(point.predicted_top1 is not None for point in found.measured) >= 6
