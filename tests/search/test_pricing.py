from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onceforall.cost.analytic import Parameters, PeakActivationMemory, PeakConvolutionMemory
from onceforall.cost.latency import LatencyTable, LatencyTables
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.model import AdditiveCost, CostModel
from onceforall.layers import LayerSpec
from onceforall.search.pricing import PriceTable, SumTable, pricer
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.spaces.resnet50d import ResNetSpace
from onceforall.testing import members


@pytest.mark.parametrize("kind", ["params", "memory", "convolution memory"])
def test_prices_of_rows_equal_costs_of_layers(kind: str, space: SearchSpace, rng: np.random.Generator) -> None:
    model: CostModel = {
        "params": Parameters(),
        "memory": PeakActivationMemory(),
        "convolution memory": PeakConvolutionMemory(),
    }[kind]
    rows = space.sample_rows(50, rng)
    expected = [model.cost(space.lower(arch)) for arch in space.from_rows(rows)]
    np.testing.assert_allclose(pricer(space, model)(rows), expected)


@pytest.mark.parametrize("based", ["MACs", "a table", "tables by resolution"])
def test_learned_latencies_of_rows_equal_those_of_layers(
    based: str, space: SearchSpace, rng: np.random.Generator
) -> None:
    table = replace(LatencyTable.synthetic(space, overhead_ms=0.02), constant=0.1)
    tables = LatencyTables(dict.fromkeys(space.resolutions, table))
    base = {"MACs": None, "a table": table, "tables by resolution": tables}[based]
    ends = [space.restrict(resolutions=[size]).largest() for size in (space.resolutions[0], space.resolutions[-1])]
    networks = [space.lower(arch) for arch in (*ends, *space.from_rows(space.sample_rows(20, rng)))]
    model = LearnedLatency.fit(networks, [table.cost(layers) ** 0.9 for layers in networks], {}, base)
    rows = space.sample_rows(50, rng)
    price = pricer(space, model)
    assert isinstance(price, SumTable)
    np.testing.assert_allclose(price(rows), [model.cost(space.lower(arch)) for arch in space.from_rows(rows)])


def test_a_constant_is_counted_once(tiny_space: SearchSpace, rng: np.random.Generator) -> None:
    table = LatencyTable(**{**vars_of(LatencyTable.synthetic(tiny_space)), "constant": 5.0})
    rows = tiny_space.sample_rows(5, rng)
    difference = PriceTable(tiny_space, table)(rows) - PriceTable(tiny_space, LatencyTable.synthetic(tiny_space))(rows)
    np.testing.assert_allclose(difference, 5.0)


def vars_of(table: LatencyTable) -> dict[str, object]:
    return {"device": table.device, "entries": table.entries}


class RandomPrices(AdditiveCost):
    """Prices of either sign that follow from nothing, the same for equal layers."""

    name, unit, constant = "price", "", 3.0

    def __init__(self, seed: int) -> None:
        self.rng, self.prices = np.random.default_rng(seed), dict[str, float]()

    def layer_cost(self, layer: LayerSpec) -> float:
        return self.prices.setdefault(layer.key, float(self.rng.normal()))


KINDS = ["plain", "width multipliers", "tied", "tied, with width multipliers", "resnet"]


@pytest.fixture
def few(
    request: pytest.FixtureRequest, tiny_space: InvertedResidualSpace, tiny_resnet_space: ResNetSpace
) -> SearchSpace:
    """A space of a kind with so few networks that the cheapest is found by looking at all."""
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "width multipliers": {"kernels": (3,), "width_multipliers": (0.25, 0.5, 1)},
        "tied": {"depths": (1, 3), "tied": True},
        "tied, with width multipliers": {"depths": (1, 2), "tied": True, "width_multipliers": (0.5, 1)},
    }
    if request.param == "resnet":  # with a unit that depth 0 skips
        return tiny_resnet_space.restrict(expands=[0.5])
    part = tiny_space.restrict(kernels=[3, 7], depths=[1, 2], expands=[3, 6])
    return replace(part, units=tuple(replace(unit, **options[request.param]) for unit in part.units))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("few", KINDS, indirect=True)
def test_cheapest_is_the_minimum_over_all_members(few: SearchSpace, seed: int) -> None:
    model = RandomPrices(seed)
    everyone = list(members(few))
    costs = {arch: model.cost(few.lower(arch)) for arch in everyone}
    assert len(costs) == few.size >= 100
    prices = PriceTable(few, model)
    np.testing.assert_allclose(prices(few.to_rows(everyone)), list(costs.values()))
    rows, found = prices.cheapest()
    assert np.array_equal(rows, few.to_rows(few.from_rows(rows)))
    for resolution, arch, cost in zip(few.resolutions, few.from_rows(rows), found, strict=True):
        assert arch.resolution == resolution
        assert cost == pytest.approx(costs[arch])
        assert cost == pytest.approx(min(value for other, value in costs.items() if other.resolution == resolution))
