from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory
from onceforall.cost.latency import LatencyTable
from onceforall.cost.model import Constraint, CostModel
from onceforall.errors import InfeasibleConstraint, InvalidConfiguration, OutOfDomain
from onceforall.rows import Rows
from onceforall.search.evolution import search
from onceforall.search.objective import PenalisedLoss, SoftTarget
from onceforall.search.pricing import pricer
from onceforall.search.result import SearchResult
from onceforall.space import SearchSpace

Make = Callable[..., Any]  # a made-up accuracy of a space


def constraints(space: SearchSpace, share: float) -> list[Constraint]:
    """Bounds on four costs at once, at a share of the way from the smallest to the largest network."""
    models = (MACs(), Parameters(), PeakActivationMemory(), LatencyTable.synthetic(space))
    ends = [[model.cost(space.lower(a)) for a in (space.smallest(), space.largest())] for model in models]
    return [model.at_most(low + share * (high - low)) for model, (low, high) in zip(models, ends, strict=True)]


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_every_constraint_holds(share: float, space: SearchSpace, linear: Make) -> None:
    limits = constraints(space, share)
    result = search(space, linear(space), limits, population=10, starts=2, children=2, generations=2)
    for arch in (result.architecture, *result.runners_up):
        for limit in limits:
            assert limit.model.cost(space.lower(arch)) <= limit.bound * (1 + 1e-12)
    expected = [limit.model.cost(space.lower(result.architecture)) for limit in limits]
    assert [cost.value for cost in result.costs] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "curved"])
@pytest.mark.parametrize("seed", range(5))
def test_finds_the_exact_optimum_of_a_space_small_enough_to_enumerate(
    kind: str, seed: int, tiny_space: SearchSpace, request: pytest.FixtureRequest
) -> None:
    space = tiny_space.restrict(kernels=[3, 7], depths=[1, 2], expands=[3, 6])
    everything = np.unique(space.sample_rows(40_000, np.random.default_rng(0)), axis=0)
    assert len(everything) == space.size
    accuracy = request.getfixturevalue(kind)(space, seed)
    limit = constraints(space, 0.35)[0]
    costs = np.array([limit.model.cost(space.lower(arch)) for arch in space.from_rows(everything)])
    best = accuracy.predict_rows(everything)[costs <= limit.bound].max()
    assert search(space, accuracy, [limit], seed=seed).accuracy == pytest.approx(best)


def test_better_than_random_search_with_as_many_evaluations(space: SearchSpace, linear: Make) -> None:
    accuracy, limit = linear(space), constraints(space, 0.3)[0]
    result = search(space, accuracy, [limit], population=20, starts=3, children=3, generations=2)
    rows = space.sample_rows(result.evaluations, np.random.default_rng(0))
    scores = accuracy.predict_rows(rows)[pricer(space, limit.model)(rows) <= limit.bound]
    assert result.accuracy > scores.max(initial=-np.inf)


def test_same_seed_same_result(tiny_space: SearchSpace, linear: Make) -> None:
    first, second = (
        search(tiny_space, linear(tiny_space), constraints(tiny_space, 0.4), seed=7, generations=5) for _ in range(2)
    )
    assert (first.architecture, first.runners_up) == (second.architecture, second.runners_up)


def test_runners_up_are_distinct_and_in_order(tiny_space: SearchSpace, linear: Make) -> None:
    accuracy = linear(tiny_space)
    result = search(tiny_space, accuracy, [], keep=8, generations=10)
    ranked = [result.architecture, *result.runners_up]
    assert len(set(ranked)) == 8
    scores = accuracy.predict_rows(tiny_space.to_rows(ranked))
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("model", [MACs(), Parameters(), PeakActivationMemory()], ids=lambda m: m.name)
def test_an_impossible_bound_names_the_smallest_reachable_value(
    model: CostModel, space: SearchSpace, linear: Make
) -> None:
    smallest = model.cost(space.lower(space.smallest()))
    with pytest.raises(InfeasibleConstraint, match=rf"{model.name} <= .* cannot be met: the smallest") as caught:
        search(space, linear(space), [model.at_most(0.99 * smallest)])
    assert caught.value.smallest == pytest.approx(smallest)
    # The value that it names can be reached.
    result = search(space, linear(space), [model.at_most(caught.value.smallest)], generations=1, population=8)
    assert model.cost(space.lower(result.architecture)) == pytest.approx(smallest)


def test_a_tight_latency_bound_is_met_without_rejection(tiny_space: SearchSpace, linear: Make) -> None:
    table = LatencyTable.synthetic(tiny_space)
    bound = 1.001 * table.cost(tiny_space.lower(tiny_space.smallest()))
    result = search(tiny_space, linear(tiny_space), [table.at_most(bound)], generations=2)
    assert result.architecture == tiny_space.smallest()


def test_result_round_trips_through_json(tiny_space: SearchSpace, linear: Make) -> None:
    result = search(tiny_space, linear(tiny_space), constraints(tiny_space, 0.5), generations=2)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    with pytest.raises(InvalidConfiguration, match="not a search result"):
        SearchResult.from_json({})


@pytest.mark.parametrize(
    "setting", [{"population": 0}, {"starts": 0}, {"generations": 0}, {"mutation": 1.5}, {"keep": 0}], ids=str
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], tiny_space: SearchSpace, linear: Make) -> None:
    with pytest.raises(InvalidConfiguration, match=next(iter(setting))):
        search(tiny_space, linear(tiny_space), [], **setting)  # type: ignore[arg-type]


def test_a_predictor_of_a_larger_space_answers_for_its_part(tiny_space: SearchSpace, linear: Make) -> None:
    part, accuracy = tiny_space.restrict(resolutions=[20], kernels=[3, 7], depths=[2]), linear(tiny_space)
    result = search(part, accuracy, [], generations=5)
    expected = accuracy.predict_rows(tiny_space.to_rows([result.architecture]))[0]
    assert result.accuracy == pytest.approx(expected)
    with pytest.raises(OutOfDomain, match=r"belongs to another space than the search: resolution \(16, 20\)"):
        search(tiny_space, linear(part), [])


def test_soft_objectives_trade_accuracy_for_latency(tiny_space: SearchSpace, linear: Make) -> None:
    space = tiny_space.restrict(kernels=[3, 7], depths=[1, 2], expands=[3, 6])
    accuracy, table = linear(space), LatencyTable.synthetic(space)
    everything = np.unique(space.sample_rows(20_000, np.random.default_rng(0)), axis=0)
    costs = np.array([table.cost(space.lower(arch)) for arch in space.from_rows(everything)])
    for objective, expected in (
        (PenalisedLoss(table, 20.0), accuracy.predict_rows(everything) - 20 * costs),
        (SoftTarget(table, costs.mean(), beyond=-1), None),
    ):
        result = search(space, accuracy, [], objective=objective)
        (cost,) = result.costs
        assert (cost.name, cost.bound) == ("latency", None)
        assert cost.value == pytest.approx(table.cost(space.lower(result.architecture)))
        reached = objective.score(np.array([result.accuracy]), np.array([[cost.value]]))[0]
        best = objective.score(accuracy.predict_rows(everything), costs[:, None])
        assert reached >= best.max() - 1e-9
        if expected is not None:
            np.testing.assert_allclose(best, expected - 100)


def test_of_equally_good_networks_the_cheapest_comes_first(tiny_space: SearchSpace) -> None:
    class Indifferent:
        space = tiny_space

        def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
            return np.full(len(rows), 50.0)

    result = search(tiny_space, Indifferent(), constraints(tiny_space, 0.5)[:1], generations=2)
    ranked = [MACs().cost(tiny_space.lower(arch)) for arch in (result.architecture, *result.runners_up)]
    assert ranked == sorted(ranked)


def test_no_network_is_evaluated_twice(tiny_space: SearchSpace, linear: Make) -> None:
    accuracy = linear(tiny_space)
    asked: list[bytes] = []
    answer = accuracy.predict_rows
    accuracy.predict_rows = lambda rows: (asked.extend(row.tobytes() for row in rows), answer(rows))[1]
    result = search(tiny_space, accuracy, constraints(tiny_space, 0.5), generations=3)
    assert result.evaluations == len(asked) == len(set(asked))


def test_latency_on_two_devices_at_once(tiny_space: SearchSpace, linear: Make) -> None:
    fast, slow = (LatencyTable.synthetic(tiny_space, overhead_ms=overhead) for overhead in (0.0, 0.1))
    largest = tiny_space.lower(tiny_space.largest())
    bounds = [table.at_most(0.7 * table.cost(largest)) for table in (fast, slow)]
    result = search(tiny_space, linear(tiny_space), bounds, generations=2)
    assert [cost.name for cost in result.costs] == ["latency", "latency"]
    assert all(cost.value <= (cost.bound or 0) for cost in result.costs)
