from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory
from onceforall.cost.latency import LatencyTable
from onceforall.cost.model import Constraint
from onceforall.errors import InfeasibleConstraint, InvalidConfiguration, OutOfDomain
from onceforall.search.evolution import SearchResult, search
from onceforall.space import Rows, SearchSpace


class Linear:
    """A made-up accuracy: a random weight for every choice, larger choices better on average."""

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        self.space = space
        width = space.encode([space.largest()]).shape[1]
        self.weights = np.random.default_rng(seed).normal(0.3, 0.3, width)

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        return np.asarray(70 + self.space.encode_rows(rows) @ self.weights, np.float64)


def constraints(space: SearchSpace, share: float) -> list[Constraint]:
    """Bounds on four costs at once, at a share of the way from the smallest to the largest network."""
    models = (MACs(), Parameters(), PeakActivationMemory(), LatencyTable.synthetic(space))
    ends = [[model.cost(space.lower(a)) for a in (space.smallest(), space.largest())] for model in models]
    return [model.at_most(low + share * (high - low)) for model, (low, high) in zip(models, ends, strict=True)]


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_every_constraint_holds(share: float, space: SearchSpace) -> None:
    limits = constraints(space, share)
    result = search(space, Linear(space), limits, generations=8, population=20)
    for arch in (result.architecture, *result.runners_up):
        for limit in limits:
            assert limit.model.cost(space.lower(arch)) <= limit.bound * (1 + 1e-12)
    expected = [limit.model.cost(space.lower(result.architecture)) for limit in limits]
    assert [cost.value for cost in result.costs] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_exact_optimum_of_a_space_small_enough_to_enumerate(seed: int, tiny_space: SearchSpace) -> None:
    space = tiny_space.restrict(kernels=[3, 7], depths=[1, 2], expands=[3, 6])
    everything = np.unique(space.sample_rows(40_000, np.random.default_rng(0)), axis=0)
    assert len(everything) == space.size
    accuracy = Linear(space, seed)
    limit = constraints(space, 0.35)[0]
    costs = np.array([limit.model.cost(space.lower(arch)) for arch in space.from_rows(everything)])
    best = accuracy.predict_rows(everything)[costs <= limit.bound].max()
    assert search(space, accuracy, [limit], seed=seed).accuracy == pytest.approx(best)


def test_better_than_random_search_with_as_many_evaluations(space: SearchSpace) -> None:
    accuracy, limit = Linear(space), constraints(space, 0.3)[0]
    result = search(space, accuracy, [limit], population=40, generations=20)
    rows = space.sample_rows(result.evaluations, np.random.default_rng(0))
    costs = np.array([limit.model.cost(space.lower(arch)) for arch in space.from_rows(rows)])
    scores = accuracy.predict_rows(rows)[costs <= limit.bound]
    assert result.accuracy > scores.max(initial=-np.inf)


def test_same_seed_same_result(tiny_space: SearchSpace) -> None:
    first, second = (
        search(tiny_space, Linear(tiny_space), constraints(tiny_space, 0.4), seed=7, generations=5) for _ in range(2)
    )
    assert (first.architecture, first.runners_up) == (second.architecture, second.runners_up)


def test_runners_up_are_distinct_and_in_order(tiny_space: SearchSpace) -> None:
    accuracy = Linear(tiny_space)
    result = search(tiny_space, accuracy, [], keep=8, generations=10)
    ranked = [result.architecture, *result.runners_up]
    assert len(set(ranked)) == 8
    scores = accuracy.predict_rows(tiny_space.to_rows(ranked))
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("model", [MACs(), Parameters(), PeakActivationMemory()], ids=lambda m: m.name)
def test_an_impossible_bound_names_the_smallest_reachable_value(model, space: SearchSpace) -> None:  # type: ignore[no-untyped-def]
    smallest = model.cost(space.lower(space.smallest()))
    with pytest.raises(InfeasibleConstraint, match=rf"{model.name} <= .* cannot be met: the smallest") as caught:
        search(space, Linear(space), [model.at_most(0.99 * smallest)])
    assert caught.value.smallest == pytest.approx(smallest)
    # The value that it names can be reached.
    result = search(space, Linear(space), [model.at_most(caught.value.smallest)], generations=1, population=8)
    assert model.cost(space.lower(result.architecture)) == pytest.approx(smallest)


def test_a_tight_latency_bound_is_met_without_rejection(tiny_space: SearchSpace) -> None:
    table = LatencyTable.synthetic(tiny_space)
    bound = 1.001 * table.cost(tiny_space.lower(tiny_space.smallest()))
    result = search(tiny_space, Linear(tiny_space), [table.at_most(bound)], generations=2)
    assert result.architecture == tiny_space.smallest()


def test_result_round_trips_through_json(tiny_space: SearchSpace) -> None:
    result = search(tiny_space, Linear(tiny_space), constraints(tiny_space, 0.5), generations=2)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    with pytest.raises(InvalidConfiguration, match="not a search result"):
        SearchResult.from_json({})


@pytest.mark.parametrize(
    "setting", [{"population": 3}, {"generations": 0}, {"parents": 0.0}, {"mutation": 1.5}, {"keep": 0}], ids=str
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], tiny_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfiguration, match=next(iter(setting))):
        search(tiny_space, Linear(tiny_space), [], **setting)  # type: ignore[arg-type]


def test_a_predictor_of_a_larger_space_answers_for_its_part(tiny_space: SearchSpace) -> None:
    part, accuracy = tiny_space.restrict(resolutions=[20], kernels=[3, 7], depths=[2]), Linear(tiny_space)
    result = search(part, accuracy, [], generations=5)
    expected = accuracy.predict_rows(tiny_space.to_rows([result.architecture]))[0]
    assert result.accuracy == pytest.approx(expected)
    with pytest.raises(OutOfDomain, match=r"belongs to another space than the search: resolution \(16, 20\)"):
        search(tiny_space, Linear(part), [])
