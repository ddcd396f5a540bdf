from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onceforall.cost.analytic import MACs, PeakActivationMemory
from onceforall.cost.latency import LatencyTable
from onceforall.cost.model import CostModel
from onceforall.errors import InfeasibleConstraint, OutOfDomain
from onceforall.search.evolution import search
from onceforall.search.exact import optimum
from onceforall.search.pricing import PriceTable
from onceforall.space import SearchSpace
from onceforall.testing import members

Make = Callable[..., Any]


@pytest.fixture
def few(kind_of_space: SearchSpace, request: pytest.FixtureRequest) -> SearchSpace:
    """A space of each kind, with few enough networks to look at all."""
    if kind_of_space.units[0].depths[0] == 0:  # resnet: with a unit that depth 0 skips
        return kind_of_space.restrict(resolutions=[32], expands=[0.5])
    part = kind_of_space.restrict(kernels=[3, 7], depths=[1, 2], expands=[3, 6])
    return replace(part, units=tuple(replace(unit, depths=unit.depths[:2]) for unit in part.units))


@pytest.mark.parametrize("seed", range(2))
def test_the_optimum_is_the_best_of_all_members(few: SearchSpace, seed: int, linear: Make) -> None:
    accuracy, everyone = linear(few, seed), list(members(few))
    models: list[CostModel] = [MACs(), LatencyTable.synthetic(few), PeakActivationMemory()]
    costs = np.array([[model.cost(few.lower(arch)) for model in models] for arch in everyone])
    bounds = [model.at_most(float(np.quantile(c, 0.5))) for model, c in zip(models, costs.T, strict=True)]
    feasible = (costs <= [limit.bound for limit in bounds]).all(axis=1)
    best = accuracy.predict_rows(few.to_rows(everyone))[feasible].max()
    found = optimum(few, accuracy, bounds)
    assert found.accuracy == pytest.approx(best)
    assert all(cost.value <= (cost.bound or 0) for cost in found.costs)


def test_evolution_reaches_the_optimum_of_a_large_space(linear: Make) -> None:
    """7371^5 networks: nobody can look at all of them."""
    from onceforall import spaces

    space = spaces.mobilenet_v3(resolutions=(32,), num_classes=10)
    accuracy, bound = linear(space), MACs().at_most(8e6)
    best = optimum(space, accuracy, [bound])
    found = search(space, accuracy, [bound], population=20, starts=2, children=2, generations=3)
    assert best.accuracy - 0.1 <= found.accuracy <= best.accuracy + 1e-6


def test_a_resolution_at_which_nothing_meets_a_peak_is_passed_over(tiny_space: SearchSpace, linear: Make) -> None:
    space = replace(tiny_space, units=tiny_space.units[:1])
    least = min(PriceTable(space, PeakActivationMemory()).cheapest()[1])
    found = optimum(space, linear(space), [PeakActivationMemory().at_most(1.01 * float(least))])
    assert found.architecture.resolution == space.resolutions[0]


def test_what_has_no_exact_optimum_is_refused(tiny_space: SearchSpace, linear: Make, curved: Make) -> None:
    with pytest.raises(OutOfDomain, match="not linear in the choices"):
        optimum(tiny_space, curved(tiny_space), [MACs().at_most(1e9)])
    with pytest.raises(InfeasibleConstraint):
        optimum(tiny_space, linear(tiny_space), [MACs().at_most(1)])

    class Whole(CostModel):
        name, unit = "whole", "ms"

        def cost(self, layers: Any) -> float:
            return float(len(layers))

    with pytest.raises(OutOfDomain, match="neither a sum nor a peak"):
        optimum(tiny_space, linear(tiny_space), [Whole().at_most(100)])
