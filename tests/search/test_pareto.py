from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory
from onceforall.cost.model import AdditiveCost
from onceforall.errors import InfeasibleConstraint, InvalidConfiguration
from onceforall.layers import LayerSpec, MBConvSpec
from onceforall.search.pareto import Front, crowding, front, ranks
from onceforall.search.pricing import PriceTable
from onceforall.space import SearchSpace
from onceforall.testing import members

Make = Callable[..., Any]
SHORT: dict[str, Any] = {"points": 8, "population": 20, "generations": 3, "rounds": 1}


def test_ranks_are_those_of_peeling_fronts_off(rng: np.random.Generator) -> None:
    points = rng.integers(0, 6, (60, 3)).astype(float)
    expected, left, rank = np.full(60, -1), list(range(60)), 0
    while left:
        first = [
            i for i in left if not any((points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left)
        ]
        expected[first], rank = rank, rank + 1
        left = [i for i in left if i not in first]
    np.testing.assert_array_equal(ranks(points), expected)
    assert expected.max() > 1


def test_crowding_is_the_distance_between_the_neighbours() -> None:
    points = np.array([[0.0, 4.0], [1.0, 2.0], [2.0, 1.0], [4.0, 0.0]])
    np.testing.assert_allclose(crowding(points), [np.inf, 2 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf])
    np.testing.assert_allclose(crowding(np.ones((3, 1)))[1], 0)


def test_a_front_at_budgets_is_that_of_all_members(tiny_space: SearchSpace, curved: Make) -> None:
    space = tiny_space.restrict(kernels=[3, 7], depths=[1, 2], expands=[3, 6])
    accuracy, everyone = curved(space), list(members(space))
    costs = np.array([MACs().cost(space.lower(arch)) for arch in everyone])
    scores = accuracy.predict_rows(space.to_rows(everyone))
    budgets = np.linspace(costs.min(), costs.max(), 6)
    found = front(space, accuracy, [MACs()], budgets=budgets.tolist(), population=40, generations=5)
    for budget in budgets:
        assert found.within(budget).accuracy == pytest.approx(scores[costs <= budget].max())
    values = [point.costs[0].value for point in found.points]
    tops = [point.accuracy for point in found.points]
    assert values == sorted(values)
    assert tops == sorted(tops)
    assert len(set(tops)) == len(tops)
    with pytest.raises(InfeasibleConstraint, match="the front begins at"):
        found.within(values[0] - 1)


class Backwards(AdditiveCost):
    """Large kernels are cheap: the smallest network is not the cheapest."""

    name, unit = "backwards", "ms"

    def layer_cost(self, layer: LayerSpec) -> float:
        return 10.0 - layer.kernel if isinstance(layer, MBConvSpec) else 1.0


def test_a_budget_that_can_be_met_has_a_point_however_tight(tiny_space: SearchSpace, linear: Make) -> None:
    least = PriceTable(tiny_space, Backwards()).cheapest()[1].min()
    for budgets in ([1.0001 * least], [1.0001 * least, 2 * least]):
        found = front(tiny_space, linear(tiny_space), [Backwards()], budgets=budgets, population=4, generations=1)
        assert found.within(budgets[0]).costs[0].value <= budgets[0]


def test_points_spread_over_the_whole_front_and_meet_constraints(tiny_space: SearchSpace, linear: Make) -> None:
    low, high = (Parameters().cost(tiny_space.lower(a)) for a in (tiny_space.smallest(), tiny_space.largest()))
    limit = Parameters().at_most((low + high) / 2)
    found = front(tiny_space, linear(tiny_space), [MACs()], [limit], **SHORT)
    assert len(found.points) > 3
    for point in found.points:
        layers = tiny_space.lower(point.architecture)
        assert [cost.value for cost in point.costs] == [MACs().cost(layers), Parameters().cost(layers)]
        assert Parameters().cost(layers) <= limit.bound
    assert [cost.bound for cost in found.points[0].costs] == [None, limit.bound]
    largest = found.points[-1].costs[0].value
    bounded = front(tiny_space, linear(tiny_space), [MACs()], [limit, MACs().at_most(0.8 * largest)], **SHORT)
    assert all(point.costs[0].value <= 0.8 * largest for point in bounded.points)


def test_several_costs_leave_only_what_nothing_dominates(tiny_space: SearchSpace, linear: Make) -> None:
    models = [MACs(), PeakActivationMemory()]
    found = front(tiny_space, linear(tiny_space), models, **SHORT)
    values = np.array([[-point.accuracy, *(cost.value for cost in point.costs)] for point in found.points])
    assert 1 < len(values) <= 8
    assert (ranks(values) == 0).all()


def test_same_seed_same_front_and_json(tiny_space: SearchSpace, linear: Make) -> None:
    first, second = (front(tiny_space, linear(tiny_space), [MACs()], seed=3, **SHORT) for _ in range(2))
    assert first.points == second.points
    assert Front.from_json(json.loads(json.dumps(first.to_json()))) == first
    with pytest.raises(InvalidConfiguration, match="front of format None"):
        Front.from_json({})


def test_settings_out_of_range_are_refused(tiny_space: SearchSpace, linear: Make) -> None:
    accuracy = linear(tiny_space)
    with pytest.raises(InvalidConfiguration, match="0 costs"):
        front(tiny_space, accuracy, [])
    with pytest.raises(InvalidConfiguration, match="2 budgets for 2 costs"):
        front(tiny_space, accuracy, [MACs(), Parameters()], budgets=[1e6, 2e6])
    with pytest.raises(InfeasibleConstraint, match="MACs <= 1 MACs cannot be met"):
        front(tiny_space, accuracy, [MACs()], budgets=[1.0, 1e9])
